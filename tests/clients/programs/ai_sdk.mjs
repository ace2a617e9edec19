// The AI SDK with its provider for whatever speaks OpenAI's API.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const [demo, scripted] = process.argv.slice(2).map((url) =>
  createOpenAICompatible({
    name: "stagecoach", baseURL: `${url}/v1`, supportsStructuredOutputs: true,
  }),
);
const MODEL = "SmolLM2-135M-Instruct.Q4_1";
const asked = { prompt: "What is the capital of France?", temperature: 0, maxOutputTokens: 12 };

// The demo model.
const whole = await generateText({ model: demo(MODEL), ...asked });
assert.match(whole.text, /Paris/);
let streamed = "";
for await (const part of streamText({ model: demo(MODEL), ...asked }).textStream) {
  streamed += part;
}
assert.equal(streamed, whole.text);
const fact = await generateText({
  model: demo(MODEL),
  prompt: "Is Paris a city?",
  output: Output.object({
    schema: z.object({ kind: z.enum(["city", "country"]), is_true: z.boolean() }),
  }),
});
assert.equal(typeof fact.output.is_true, "boolean");
const { embedding } = await embed({ model: demo.embeddingModel(MODEL), value: "Paris" });
assert.ok(embedding.length > 0);

// A model that thinks and calls a tool.
for (const generate of [generateText, streamText]) {
  const cities = [];
  const done = await generate({
    model: scripted("scripted"),
    prompt: "Weather in Paris?",
    stopWhen: isStepCount(3),
    tools: {
      weather: tool({
        description: "Weather of a city.",
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => { cities.push(city); return "sunny"; },
      }),
    },
  });
  assert.equal(await done.text, "It is sunny.");
  assert.equal(await done.reasoningText, "I look.");
  assert.deepEqual(cities, ["Paris"]);
}
