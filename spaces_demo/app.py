"""
A page for one recommender: build a history, get ranked items, see how they were found.

`build_demo("user/name")` or `build_demo("folder")` is all there is; the name comes from the command line, from
`HF_GENREC_REPO`, or from `models` in the head of README.md beside this file.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
from page_parts import about_html, examples_html, found_html, head_html
from page_style import CSS, LISTEN
from served_model import MAX_BEAMS, MAX_QUERY, MAX_RESULTS, ServedModel, load_model, repository
from visit import changed, linked, shown


AT_ONCE = 2  # recommendations computed at the same time; further requests wait in line
MAX_WAITING = 64


def build_demo(repo_or_folder: str | os.PathLike[str]) -> gr.Blocks:
    """
    The page, with its first recommendations already computed.

    Args:
        repo_or_folder (`str` or `Path`): Name of a Hub repository, or a folder with the same files.

    Returns:
        `gr.Blocks`: to be started with `.launch(**launch_options())`.
    """
    served = load_model(repo_or_folder)
    examples = served.examples()
    history = tuple(examples[0]) if examples else ()
    with gr.Blocks(title=f"{served.name}: what comes next?", analytics_enabled=False) as demo:
        chosen = gr.State(history)
        _part(head_html(served), elem_id="head")
        with gr.Tab("Recommend"):
            _page(served, examples, chosen, demo)
        with gr.Tab("About"):
            _part(about_html(served), elem_id="about")
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=MAX_WAITING)


def launch_options() -> dict[str, Any]:
    """
    How the page is started: its look, and nothing fetched from elsewhere.

    Returns:
        `dict`: arguments of `gr.Blocks.launch`.
    """
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": CSS, "ssr_mode": False, "footer_links": ["gradio", "settings"]}


def _page(served: ServedModel, examples: Sequence[Sequence[int]], chosen: gr.State, demo: gr.Blocks) -> None:
    """The parts of the first tab and what connects them."""
    defaults = served.defaults
    first = (defaults.top_k, defaults.num_beams, defaults.latent_aggregation, defaults.exclude_seen, 0.0)
    _, history_part, list_part, tree_part = shown(served, chosen.value, *first)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            num_items = f"{len(served.item_ids):,}"
            query = gr.Textbox(
                label=f"Search {num_items} items", placeholder="Part of a title, or an item id", max_lines=1,
                max_length=MAX_QUERY, elem_id="query",
            )  # fmt: skip
            found = _part("", elem_id="found")
            samples = _part(examples_html(served, examples), elem_id="examples")
            history = _part(history_part, elem_id="history")
            controls = _controls(served)
        with gr.Column(scale=3, min_width=320):
            ranked = _part(list_part, elem_id="ranked")
    with gr.Column(visible=served.has_beams):
        tree = _part(tree_part, elem_id="tree")
    outputs = [chosen, history, ranked, tree]
    options = {
        "inputs": [chosen, *controls],
        "outputs": outputs,
        "show_progress": "hidden",
        "api_visibility": "private",
    }

    def picked(event: gr.EventData, old: Sequence[int], *values: Any) -> tuple[Any, ...]:
        new, notice = changed(served, examples, old, event._data.get("action"), event._data.get("item"))
        return shown(served, new, *values, notice=notice)

    for part in (found, samples, history, ranked):
        part.pick(picked, **options)
    for control in controls:
        event = control.release if isinstance(control, gr.Slider) else control.input
        event(partial(shown, served), trigger_mode="always_last", **options)
    query.change(
        lambda text: found_html(served, text, served.search(text)), inputs=query, outputs=found,
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip

    def opened(request: gr.Request, *values: Any) -> Any:
        ids = request.query_params.get("items")
        if ids is None:
            return [gr.skip() for _ in outputs]
        new, notice = linked(served, ids)
        return shown(served, new, *values, notice=notice)

    demo.load(opened, inputs=controls, outputs=outputs, show_progress="hidden", api_visibility="private")


def _controls(served: ServedModel) -> list[Any]:
    """Those that the model has are shown, in the order of the fields of `Settings`."""
    defaults = served.defaults
    most = min(MAX_RESULTS, len(served.item_ids))
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        return [
            gr.Slider(1, most, value=defaults.top_k, step=1, label="Results", elem_id="top_k"),
            gr.Slider(
                1, MAX_BEAMS, value=defaults.num_beams, step=1, label="Beams", info="More find more, and take longer.",
                visible=served.has_beams, elem_id="num_beams",
            ),
            gr.Radio(
                [("best path", "max"), ("sum of paths", "sum")], value=defaults.latent_aggregation,
                label="Score of an item that several latents reach", visible=served.has_latents, elem_id="aggregation",
            ),
            gr.Checkbox(value=defaults.exclude_seen, label="Leave out the history", elem_id="exclude_seen"),
            gr.Slider(
                0, 1, value=0, step=0.05, label="Diversity", info="0: the likeliest. 1: as unlike as possible.",
                elem_id="diversity",
            ),
        ]  # fmt: skip


def _part(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, js_on_load=LISTEN, elem_classes="part", **options)


def main() -> None:
    """Start the page."""
    build_demo(repository(sys.argv[1:])).launch(**launch_options())


if __name__ == "__main__":
    main()
