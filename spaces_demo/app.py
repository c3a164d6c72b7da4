"""
A page for one recommender: build a history, get ranked items, see how they were found and what item-kNN would say.

`build_demo("user/name")` or `build_demo("folder")` is all there is; the name comes from the command line, from
`HF_GENREC_REPO`, or from `models` in the head of README.md beside this file. The page answers at once and says that
it is loading until the model is there. With `HF_GENREC_SERVER` the lists come from that server, see `remote_model.py`.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import gradio as gr
from page_parts import about_html, examples_html, found_html, head_html, loading_html
from page_style import COLORS, CSS, LISTEN
from remote_model import RemoteModel, ServerError
from served_model import MAX_BEAMS, MAX_QUERY, MAX_RESULTS, ServedModel, load_model, pinned, repository
from visit import changed, linked, shown


AT_ONCE = 2  # recommendations computed at the same time; further requests wait in line
MAX_WAITING = 64
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Page(NamedTuple):
    """A loaded model and the histories to begin with."""

    served: ServedModel
    examples: list[list[int]]


def start_loading(repo_or_folder: str | os.PathLike[str]) -> "Future[Page]":
    """Load the model and find its examples beside the page."""

    def load() -> Page:
        server = os.environ.get("HF_GENREC_SERVER")
        served = RemoteModel(server, repo_or_folder) if server else load_model(repo_or_folder)
        return Page(served, served.examples())

    return ThreadPoolExecutor(1).submit(load)


def build_demo(repo_or_folder: str | os.PathLike[str], page: "Future[Page] | None" = None) -> gr.Blocks:
    """
    The page, to be started with `.launch(**launch_options())`; its model is loaded while it is already shown.

    Args:
        repo_or_folder (`str` or `Path`): Name of a Hub repository, or a folder with the same files.
        page (`Future[Page]`, *optional*): What [`start_loading`] returned for it, for who wants to wait for it.
    """
    page = page or start_loading(repo_or_folder)
    with gr.Blocks(title="What comes next?", analytics_enabled=False) as demo:
        head = _part(loading_html(pinned(os.fspath(repo_or_folder))[0]), elem_id="head")
        with gr.Tab("Recommend"):
            parts = _recommend_tab(page)
        with gr.Tab("About"):
            about = _part("", elem_id="about")

        def opened(request: gr.Request) -> list[Any]:
            return _opened(page.result(), request.query_params.get("items"))

        demo.load(opened, outputs=[head, about, *parts], **QUIETLY)
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=MAX_WAITING)


def launch_options() -> dict[str, Any]:
    """Arguments of `gr.Blocks.launch`: the look of the page, and nothing fetched from elsewhere."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(**COLORS)
    return {"theme": theme, "css": CSS, "ssr_mode": False, "footer_links": ["gradio", "settings"]}


def _recommend_tab(page: "Future[Page]") -> list[Any]:
    """The parts of the first tab and what connects them, in the order in which `_opened` fills them."""
    chosen = gr.State(())
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            query = gr.Textbox(
                label="Search items", placeholder="Part of a title, or an item id", max_lines=1,
                max_length=MAX_QUERY, elem_id="query",
            )  # fmt: skip
            found = _part("", elem_id="found")
            samples = _part("", elem_id="examples")
            history = _part("", elem_id="history")
            controls = _controls()
        with gr.Column(scale=7, min_width=320):
            ranked = _part("", elem_id="ranked")
        with gr.Column(scale=4, min_width=260, visible=False) as beside:  # until a model with neighbours is there
            neighbors = _part("", elem_id="neighbors")
    tree = _part("", elem_id="tree")
    lists = [chosen, history, ranked, neighbors, tree]
    busy = {"show_progress": "minimal", "show_progress_on": [ranked, neighbors], "api_visibility": "private"}

    def picked(event: gr.EventData, old: Sequence[int], *values: Any) -> tuple[Any, ...]:
        served, examples = page.result()
        new, notice = changed(served, examples, old, event._data.get("action"), event._data.get("item"))
        return _shown(served, new, *values, notice=notice)

    def searched(text: str) -> str:
        served = page.result().served
        return found_html(served, text, served.search(text))

    for part in (found, samples, history, ranked):
        part.pick(picked, inputs=[chosen, *controls], outputs=lists, **busy)
    for control in controls:
        event = control.release if isinstance(control, gr.Slider) else control.input
        event(
            lambda *values: _shown(page.result().served, *values), inputs=[chosen, *controls], outputs=lists,
            trigger_mode="always_last", **busy,
        )  # fmt: skip
    query.change(searched, inputs=query, outputs=found, trigger_mode="always_last", **QUIETLY)
    return [query, samples, beside, *controls, *lists]


def _controls() -> list[Any]:
    """In the order of the fields of `Settings`; `_opened` gives them their values and hides those without effect."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        return [
            gr.Slider(1, MAX_RESULTS, value=10, step=1, label="Results", elem_id="top_k"),
            gr.Slider(
                1, MAX_BEAMS, value=50, step=1, label="Beams", elem_id="num_beams",
                info="Unfinished items that the search keeps after each code. More find more, and take longer.",
            ),
            gr.Radio(
                [("best path", "max"), ("sum of paths", "sum")], value="max", elem_id="aggregation",
                label="Score of an item that several latents reach",
                info="Latents are learnt starting points of the model. Each can reach an item by a path of its own.",
            ),
            gr.Checkbox(value=False, label="Leave out the history", elem_id="exclude_seen"),
            gr.Slider(
                0, 1, value=0, step=0.05, label="Diversity", info="0: the likeliest. 1: as unlike as possible.",
                elem_id="diversity",
            ),
        ]  # fmt: skip


def _opened(page: Page, ids: str | None) -> list[Any]:
    """Everything on the page for a new visit, whose address may name a history."""
    served, examples = page
    settings = served.defaults
    history, notice = tuple(examples[0]) if examples else (), ""
    if ids is not None:
        history, notice = linked(served, ids)
    num_items = len(served.item_ids)
    values = (settings.top_k, settings.num_beams, settings.latent_aggregation, settings.exclude_seen, 0.0)
    is_shown = (True, served.has_beams, served.has_latents, True, served.can_compare)
    controls = [gr.update(value=value, visible=visible) for value, visible in zip(values, is_shown, strict=True)]
    controls[0]["maximum"] = min(MAX_RESULTS, num_items)
    return [
        head_html(served),
        about_html(served),
        gr.update(label=f"Search {num_items:,} items"),
        examples_html(served, examples),
        gr.update(visible=served.neighbors is not None),
        *controls,
        *_shown(served, history, *values, notice=notice),
    ]


def _shown(served: ServedModel, history: Sequence[int], *values: Any, notice: str = "") -> tuple[Any, ...]:
    """See `shown`; a visitor reads why a server gave no list."""
    try:
        return shown(served, history, *values, notice=notice)
    except ServerError as error:
        raise gr.Error(str(error)) from error


def _part(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, js_on_load=LISTEN, elem_classes="part", **options)


def main() -> None:
    """Start the page; a model that cannot be loaded ends the program with its error."""
    source = repository(sys.argv[1:])
    page = start_loading(source)
    demo = build_demo(source, page)
    demo.launch(prevent_thread_lock=True, **launch_options())
    page.result()
    demo.block_thread()


if __name__ == "__main__":
    main()
