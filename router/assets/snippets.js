// A request as text: JSON that people can edit, a curl command, and lines for the Python SDK.

const SHORT = 76;

/** JSON with lists of plain values on one line each. */
export function pretty(value, indent = "") {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const flat = JSON.stringify(value);
  const plain = Array.isArray(value) && value.every((item) => item === null || typeof item !== "object");
  if (plain || flat.length <= SHORT - indent.length) return flat.replaceAll(",", ", ");
  const deeper = indent + "  ";
  const parts = Array.isArray(value)
    ? value.map((item) => deeper + pretty(item, deeper))
    : Object.entries(value).map(([name, item]) => `${deeper}${JSON.stringify(name)}: ${pretty(item, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return parts.length ? `${open}\n${parts.join(",\n")}\n${indent}${close}` : open + close;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl({ url, headers, body, secured }) {
  const lines = [`curl -sS ${quoted(url)}`];
  for (const [name, value] of Object.entries(headers)) lines.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (secured) lines.push('-H "Authorization: Bearer $HYBRID_ROUTER_KEY"');
  lines.push(`-d ${quoted(compact(body))}`);
  return lines.join(" \\\n  ");
}

function compact(body) {
  try {
    return JSON.stringify(JSON.parse(body));
  } catch {
    return body;
  }
}

const DTYPES = {
  BOOL: "bool", UINT8: "uint8", UINT16: "uint16", UINT32: "uint32", UINT64: "uint64", INT8: "int8",
  INT16: "int16", INT32: "int32", INT64: "int64", FP16: "float16", BF16: "float32", FP32: "float32",
  FP64: "float64", BYTES: "object",
};

/** The same values as Python writes them. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return value === null ? "None" : value === true ? "True" : value === false ? "False" : JSON.stringify(value);
}

export function python({ base, model, variant, budget, async, body, secured }) {
  let inputs;
  try {
    inputs = JSON.parse(body).inputs.map((one) =>
      `    ${JSON.stringify(one.name)}: np.array(${literal(one.data)}, dtype=np.${DTYPES[one.datatype] ?? one.datatype})` +
      `.reshape(${JSON.stringify(one.shape).slice(1, -1).replaceAll(",", ", ")}),`);
  } catch {
    return "# the body is not a request yet";
  }
  const options = [`budget="${budget}ms"`];
  if (variant) options.push(`variant=${JSON.stringify(variant)}`);
  const call = `client.${async ? "submit" : "infer"}(${JSON.stringify(model)}, inputs, ${options.join(", ")})`;
  return [
    "import numpy as np",
    "from router import Client",
    "",
    `client = Client(${JSON.stringify(base)})` + (secured ? "  # the API key: HYBRID_ROUTER_KEY, or key=" : ""),
    "inputs = {",
    ...inputs.map((line) => line.replaceAll("np.object", "object")),
    "}",
    async ? `result = ${call}.result()` : `result = ${call}`,
    "print(result.variant, result.outputs)",
  ].join("\n");
}
