// What comes from the service, taken apart: server-sent events, and the calculations in a reasoning.
// Knows nothing about the page; it runs under node too.

/** Objects of a stream of server-sent events, from a reader of byte chunks. Ends at [DONE]; throws where it is cut. */
export async function* events(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
    if (done) throw new Error("cut");
  }
}

/** A reasoning as parts: {text} and {step: "48/2", value: "24"}; an annotation that is not finished is a step too. */
export function parts(reasoning) {
  const found = [];
  let at = 0;
  const pattern = /<<([^<>]*?)(?:=([^<>=]*))?(>>|>?$)/g;
  for (const match of reasoning.matchAll(pattern)) {
    if (match.index > at) found.push({ text: reasoning.slice(at, match.index) });
    found.push({ step: match[1], value: match[2] ?? null });
    at = match.index + match[0].length;
    // the sentence goes on with the value: "… = <<48/2=24>>24"
    if (match[2] && reasoning.startsWith(match[2], at)) at += match[2].length;
  }
  if (at < reasoning.length) found.push({ text: reasoning.slice(at) });
  return found;
}
