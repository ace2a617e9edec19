// The package `openai` for Node.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [demo, scripted] = process.argv.slice(2).map(
  (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" }),
);
const model = (await demo.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, messages, temperature: 0, max_tokens: 12 };

// The demo model, by chat.
const whole = await demo.chat.completions.create(greedy);
assert.match(whole.choices[0].message.content, /Paris/);
let streamed = "";
for await (const chunk of await demo.chat.completions.create({ ...greedy, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(streamed, whole.choices[0].message.content);
const Fact = z.object({ kind: z.enum(["city", "country"]), is_true: z.boolean() });
const parsed = await demo.chat.completions.parse({
  model, messages, response_format: zodResponseFormat(Fact, "fact"),
});
assert.equal(typeof parsed.choices[0].message.parsed.is_true, "boolean");
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
      required: ["city"],
    },
  },
};
const forced = await demo.chat.completions.create({
  model, messages, tools: [weather], tool_choice: "required",
});
assert.equal(forced.choices[0].message.tool_calls[0].function.name, "weather");

// The demo model, by responses.
const response = await demo.responses.create({ model, input: "Hello", max_output_tokens: 16 });
assert.ok(response.output_text);
const fact = await demo.responses.parse({
  model, input: "Paris?", text: { format: zodTextFormat(Fact, "fact") },
});
assert.equal(typeof fact.output_parsed.is_true, "boolean");
const vectors = await demo.embeddings.create({ model, input: ["Paris", "Rome"] });
assert.equal(vectors.data.length, 2);

// A model that calls tools.
const asked = [];
const runner = scripted.chat.completions.runTools({
  model: "scripted",
  messages: [{ role: "user", content: "Weather?" }],
  stream: true,
  tools: [{
    type: "function",
    function: {
      ...weather.function,
      parse: JSON.parse,
      function: ({ city }) => { asked.push(city); return "sunny"; },
    },
  }],
});
assert.equal(await runner.finalContent(), "It is sunny.");
assert.deepEqual(asked, ["Paris"]);
