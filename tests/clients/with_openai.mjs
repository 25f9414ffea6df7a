// OpenAI's package for Node: chat, stream, responses, embeddings, errors. Tells what it did as checks.py does.
import OpenAI from "openai";

const [url, key, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "What is your name?" }];
const chat = { model, messages, temperature: 0, max_completion_tokens: 12 };

function must(holds, what) {
  if (!holds) throw new Error(what);
}

async function thrown(kind, work) {
  try {
    await work();
  } catch (error) {
    must(error instanceof kind, `${error} is no ${kind.name}`);
    return error;
  }
  throw new Error(`no ${kind.name}`);
}

const checks = {
  async "chat"() {
    const answer = await client.chat.completions.create(chat);
    must(answer.choices[0].message.content && answer.usage.completion_tokens <= 12, JSON.stringify(answer));
  },
  async "chat streamed is the same"() {
    const whole = await client.chat.completions.create(chat);
    let text = "";
    for await (const part of await client.chat.completions.create({ ...chat, stream: true })) {
      text += part.choices[0]?.delta?.content ?? "";
    }
    must(text === whole.choices[0].message.content, text);
    const word = await client.chat.completions.stream({ ...chat, stop: " " }).finalContent();
    must(word && text.startsWith(word), word);
  },
  async "tools"() {
    const parameters = { type: "object", properties: { city: { enum: ["Paris"] } }, required: ["city"] };
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const asked = { ...chat, max_completion_tokens: 60, tools, tool_choice: "required" };
    const answer = await client.chat.completions.create(asked);
    must(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments).city === "Paris", JSON.stringify(answer));
  },
  async "responses"() {
    const asked = { model, input: "What is your name?", temperature: 0, max_output_tokens: 12 };
    const whole = await client.responses.create(asked);
    let text = "";
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    must(text && text === whole.output_text, text);
    must((await client.responses.retrieve(whole.id)).id === whole.id, whole.id);
  },
  async "embeddings"() {
    const usual = await client.embeddings.create({ model, input: ["a cat", "a dog"] });
    const floats = await client.embeddings.create({ model, input: ["a cat", "a dog"], encoding_format: "float" });
    must(usual.data.length === 2 && usual.data[0].embedding.length > 16, "two vectors");
    floats.data[1].embedding.forEach((x, i) => must(Math.abs(x - usual.data[1].embedding[i]) < 1e-5, `number ${i}`));
  },
  async "models"() {
    const found = [];
    for await (const each of client.models.list()) found.push(each.id);
    must(found.length === 1 && found[0] === model && (await client.models.retrieve(model)).id === model, `${found}`);
  },
  async "errors"() {
    const missing = await thrown(OpenAI.NotFoundError, () => client.chat.completions.create({ ...chat, model: "gpt-5" }));
    must(missing.code === "model_not_found" && missing.requestID, `${missing}`);
    await thrown(OpenAI.BadRequestError, () => client.chat.completions.create({ ...chat, temperature: -1 }));
    const stranger = client.withOptions({ apiKey: "sk-wrong" });
    await thrown(OpenAI.AuthenticationError, () => stranger.chat.completions.create(chat));
  },
};

for (const [name, work] of Object.entries(checks)) {
  const began = Date.now();
  let wrong = "";
  try {
    await work();
  } catch (error) {
    wrong = `${error.name}: ${error.message}`;
  }
  console.log(JSON.stringify({ check: name, wrong, s: (Date.now() - began) / 1000 }));
}
