"""gradio's chat, and its own client that says two things to it."""

import sys

import gradio as gr
from gradio_client import Client

MODEL = "SmolLM2-135M-Instruct.Q4_1"
chat = gr.load_chat(f"{sys.argv[1]}/v1", model=MODEL, token="none")
_, url, _ = chat.launch(prevent_thread_lock=True, quiet=True)
client = Client(url, verbose=False)
for question in ("Say one word.", "Say another word."):
    print(client.view_api(return_format="dict"))
    assert client.predict(question, api_name="/chat")
chat.close()
