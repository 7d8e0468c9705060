// Ask mm-serve without any package: node ask.mjs QUESTION. The reasoning comes as it is generated; Ctrl-C stops it.
// MINDMERGER_URL names another service than http://127.0.0.1:8017, MINDMERGER_API_KEY its key.
const url = process.env.MINDMERGER_URL ?? "http://127.0.0.1:8017";
const headers = {
  "Content-Type": "application/json",
  Authorization: `Bearer ${process.env.MINDMERGER_API_KEY ?? "none"}`,
};

/** The service's answer; what it refuses, it refuses with a sentence. */
async function call(path, options = {}) {
  const response = await fetch(url + path, { headers, ...options });
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
}

/** The events of a stream, parsed. An event is a line `data: …`; a chunk of bytes may end anywhere, within a character too. */
async function* events(response) {
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice("data: ".length));
    }
  }
}

async function ask(question) {
  const model = (await (await call("/v1/models")).json()).data[0].id;
  const body = JSON.stringify({ model, stream: true, messages: [{ role: "user", content: question }] });
  let facts = {};
  for await (const event of events(await call("/v1/chat/completions", { method: "POST", body }))) {
    if (event.error) throw new Error(event.error.message);
    process.stdout.write(event.choices[0]?.delta.content ?? "");
    facts = { ...facts, ...event.mindmerger };
  }
  console.log(`\nAnswer: ${facts.answer ?? "none"}`);
}

const question = process.argv.slice(2).join(" ");
try {
  if (!question) throw new Error("usage: node ask.mjs QUESTION");
  await ask(question);
} catch (error) {
  console.error(`ask: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
}
