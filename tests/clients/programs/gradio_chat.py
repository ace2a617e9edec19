"""gradio's chat, and its own client that says two things to it."""

import sys

import gradio as gr
from gradio_client import Client

chat = gr.load_chat(f"{sys.argv[1]}/v1", model="SmolLM2-135M-Instruct.Q4_1", token="none")
_, url, _ = chat.launch(prevent_thread_lock=True, quiet=True)
client = Client(url, verbose=False)
for question in ("Say one word.", "Say another word."):
    assert client.predict({"text": question, "files": []}, api_name="/open_api_stream")
chat.close()
