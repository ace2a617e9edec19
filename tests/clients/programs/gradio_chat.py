"""gradio's ChatInterface over the package `openai`, and gradio's own client that talks to it."""

import sys
from typing import Any

import gradio as gr
from gradio_client import Client
from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct.Q4_1"
demo = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")


def answer(message: str, history: list[Any]) -> str:
    """What gradio's guide shows: its history goes to the model as it is."""
    messages = [*history, {"role": "user", "content": message}]
    done = demo.chat.completions.create(model=MODEL, messages=messages, max_tokens=12)
    return done.choices[0].message.content or ""


chat = gr.ChatInterface(answer, api_name="chat")
_, url, _ = chat.launch(prevent_thread_lock=True, quiet=True)
client = Client(url, verbose=False)
for question in ("Say one word.", "Say another word."):
    assert client.predict(question, api_name="/chat")
chat.close()
