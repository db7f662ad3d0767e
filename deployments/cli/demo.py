"""A page with the trained and the untrained model side by side: `daily-train demo`. Needs the extra `demo` (Gradio)."""

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is reported to anybody
os.environ |= {"GRADIO_SSR_MODE": "False", "GRADIO_RUN_HISTORY": "False"}  # nor another server, nor a history, needed

from collections.abc import Iterator

import gradio as gr
from starlette.middleware import Middleware

from deployments.cli.dialogue import ModelPair, argument_parser, load_model_pair
from deployments.origin import OwnOrigin
from eval.sample_prompts import PROMPTS
from model.errors import print_error

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "frame-ancestors 'none'"
)
SYSTEM_FONTS = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # others come from elsewhere


def page(pair: ModelPair) -> gr.Blocks:
    """Prompt and settings above, the two texts below; both grow while they are drawn."""

    def answer(prompt: str, new_tokens: float, temperature: float, seed: float) -> Iterator[tuple[str, str]]:
        for untrained, trained in pair.answers(prompt, int(new_tokens), temperature, int(seed)):
            yield prompt + untrained, prompt + trained

    millions = sum(parameter.numel() for parameter in pair.trained.parameters()) / 1e6
    with gr.Blocks(title="The Daily Train", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# The Daily Train\nThe same network of {millions:.1f} million parameters before and after "
            "training. It continues a text; it does not answer questions."
        )
        prompt = gr.Textbox(PROMPTS[0], label="Beginning of a text", elem_id="prompt", lines=2)
        with gr.Row():
            new_tokens = gr.Slider(8, 256, 64, step=8, label="Length (tokens)", elem_id="length")
            temperature = gr.Slider(0, 1.5, 0.8, step=0.1, label="Temperature (0: the likeliest token)")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        button = gr.Button("Continue", variant="primary", elem_id="continue")
        with gr.Row():
            untrained = gr.Textbox(label="Untrained", lines=8, elem_id="untrained", interactive=False)
            trained = gr.Textbox(label="Trained", lines=8, elem_id="trained", interactive=False)
        gr.Examples([[text] for text in PROMPTS], prompt)
        inputs = [prompt, new_tokens, temperature, seed]
        button.click(answer, inputs, [untrained, trained])
        prompt.submit(answer, inputs, [untrained, trained])
    return blocks


def main() -> None:
    """Serve the page on loopback until interrupted."""
    arguments = argument_parser("Serve a page with a model before and after training.")
    arguments.add_argument("--port", type=int, required=True)
    given = arguments.parse_args()
    own = Middleware(OwnOrigin, port=given.port, policy=POLICY)
    try:
        blocks = page(load_model_pair(given.folder, given.tokenizer))
        blocks.launch(
            server_name="127.0.0.1",
            server_port=given.port,
            share=False,
            theme=SYSTEM_FONTS,
            show_error=True,
            app_kwargs={"middleware": [own]},
            max_file_size=1,  # the page takes no files
        )
    except Exception as error:
        sys.exit(print_error(error))


if __name__ == "__main__":
    main()
