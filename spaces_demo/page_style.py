"""
How the page looks: colours come from gradio's own variables, so that light and dark follow the visitor. Grey is darker
than gradio's, whose contrast on white is 2.56:1; all text here has 4.5:1 at least (WCAG AA).
"""

COLORS = {
    "color_accent": "#4f46e5",  # in the dark: see the end of CSS
    "body_text_color_subdued": "#475569",
    "body_text_color_subdued_dark": "#a8b5c8",
    "block_info_text_color": "#475569",
    "block_info_text_color_dark": "#a8b5c8",
    "block_title_text_color": "#334155",
    "block_title_text_color_dark": "#cbd5e1",
    "block_label_text_color": "#334155",
    "block_label_text_color_dark": "#cbd5e1",
    "input_placeholder_color": "#5b6678",
    "input_placeholder_color_dark": "#a8b5c8",
    "link_text_color": "#4338ca",
    "link_text_color_dark": "#a5b4fc",
}

CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
.part p, .part ol, .part ul { margin: 0; }
.part .quiet { color: var(--body-text-color-subdued); font-size: 13px; }
.part .notice { background: var(--background-fill-secondary); border-left: 3px solid var(--color-accent);
  padding: 6px 10px; margin-bottom: 8px; border-radius: 4px; overflow-wrap: anywhere; }
.part button { cursor: pointer; color: var(--body-text-color); font: inherit; }
.part button:focus-visible, .part summary:focus-visible, .tree:focus-visible {
  outline: 2px solid var(--color-accent); }
.part .title { overflow-wrap: anywhere; line-height: 1.35; }
.part .tool { flex: none; min-width: 32px; height: 32px; border-radius: 8px; background: transparent;
  border: 1px solid var(--border-color-primary); }
.part .tool:hover, .part .found button:hover, .part .examples button:hover { border-color: var(--color-accent);
  background: var(--background-fill-secondary); }
.part .link { border: 0; background: none; padding: 0 4px; text-decoration: underline; min-height: 24px; }
.part ol.history, .part ul.found, .part ol.ranked { list-style: none; padding: 0; counter-reset: place; }
.part ul.found li { margin: 0; padding: 0; }
.part ol.history li { display: flex; gap: 8px; align-items: center; justify-content: space-between; padding: 5px 0;
  border-bottom: 1px solid var(--border-color-primary); }
.part ol.history li.unread .title { color: var(--body-text-color-subdued); font-style: italic; }
.part ol.compact > li { padding: 7px 0 7px 34px; } .part ol.compact > li::before { top: 7px; }
.part abbr { text-decoration: underline dotted; text-underline-offset: 3px; cursor: help; }
.part .legend { border-left: 3px solid var(--border-color-primary); padding: 0 0 0 8px; margin: 2px 0 6px;
  list-style: none; }
.part .legend li { padding: 0; line-height: 1.5; color: inherit; }
.part .html-container.pending { opacity: 1; }
.part .pending .part > :not(h2) { opacity: .4; transition: opacity .2s .15s; }
#ranked .pending h2::after { content: "computing …"; margin-left: 10px; font-size: 13px; font-weight: 400;
  animation: grow .2s .15s both; }
.part .progress-text { display: none; }
.part .copied { width: 100%; font-size: 13px; }
.part a { color: var(--link-text-color); text-decoration: underline; }
.part code { font-size: 12px; overflow-wrap: anywhere; }
.part .tools { display: flex; gap: 4px; flex: none; }
.part ul.found button { width: 100%; text-align: left; padding: 8px 10px; margin-bottom: 4px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: transparent; overflow-wrap: anywhere; }
.part .examples { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.part .examples button { border: 1px solid var(--border-color-primary); border-radius: 99px; padding: 5px 12px;
  background: transparent; font-size: 13px; max-width: 100%; overflow-wrap: anywhere; }
.part ol.ranked > li { counter-increment: place; position: relative; padding: 9px 0 9px 34px;
  border-bottom: 1px solid var(--border-color-primary); }
.part ol.ranked > li::before { content: counter(place); position: absolute; left: 0; top: 12px; width: 24px;
  text-align: right; font-weight: 600; color: var(--body-text-color-subdued); }
.part .row { display: flex; gap: 8px; align-items: flex-start; justify-content: space-between; }
.part .row .title { font-weight: 600; padding-top: 4px; }
.part .bar { height: 4px; border-radius: 2px; margin: 6px 0 4px; background: var(--background-fill-secondary); }
.part .bar span { display: block; height: 100%; min-width: 2px; border-radius: 2px; background: var(--color-accent); }
.part .status { font-size: 13px; padding-bottom: 4px; }
.part summary { cursor: pointer; font-size: 13px; color: var(--body-text-color-subdued); padding: 2px 0;
  width: fit-content; }
.part details p, .part details li { font-size: 13px; overflow-wrap: anywhere; }
.part details ul { padding-left: 18px; list-style: disc; }
.part details span { color: var(--body-text-color-subdued); }
.part .tree { overflow-x: auto; contain: inline-size; padding-bottom: 4px; }
.tree svg { display: block; width: 100%; min-width: 620px; max-width: 1040px; height: auto; font-size: 12px; }
.tree text { fill: var(--body-text-color); }
.tree .column { fill: var(--body-text-color-subdued); font-size: 11px; }
.tree .code { font-size: 10px; fill: var(--body-text-color-subdued); }
.tree .agrees { fill: var(--body-text-color); } .tree .differs { fill: none; stroke: var(--body-text-color-subdued); }
.tree path { fill: none; stroke-linecap: round; opacity: .8; }
.tree path.leaf { stroke: var(--border-color-primary); }
.tree path.dropped { stroke: var(--body-text-color-subdued); stroke-dasharray: 2 4; opacity: .55; }
.tree .root { fill: var(--body-text-color); }
.part table.metrics { border: 0; border-collapse: collapse; margin: 8px 0; display: block; max-width: 100%;
  width: fit-content; overflow-x: auto; }
.part table.metrics :is(thead, tbody, tr) { border: 0; }
.part table.metrics th, .part table.metrics td { text-align: left; padding: 6px 14px 6px 0; font-weight: 400;
  border: 0; border-bottom: 1px solid var(--border-color-primary); white-space: nowrap; }
.part table.metrics tbody tr:first-child > * { font-weight: 600; }
.part h3 { font-size: 18px; margin: 4px 0; overflow-wrap: anywhere; } .part h4 { margin: 10px 0 4px; }
.part h1 { font-size: 22px; font-weight: 650; margin: 4px 0; }
.part h2 { font-size: 16px; font-weight: 600; margin: 4px 0 6px; }
#found:not(:has(li)):not(:has(p)) { display: none; }
.part ul.points { padding-left: 20px; list-style: disc; }
@media (min-width: 760px) { .part .narrow { display: none; } }
@keyframes grow { from { opacity: 0; } }
.grow { animation: grow .25s both; }
.step-1 { animation-delay: .05s; } .step-2 { animation-delay: .15s; } .step-3 { animation-delay: .25s; }
.step-4 { animation-delay: .35s; } .step-5 { animation-delay: .45s; } .step-6 { animation-delay: .55s; }
@keyframes turn { to { transform: rotate(360deg); } }
.spinner { display: inline-block; width: 14px; height: 14px; margin-right: 8px; vertical-align: -2px;
  border: 2px solid var(--border-color-primary); border-top-color: var(--link-text-color); border-radius: 50%;
  animation: turn 1s linear infinite; }
.dark { --color-accent: #818cf8; }
@media (prefers-reduced-motion: reduce) { .grow, .spinner { animation: none; } }
"""


LISTEN = """
element.addEventListener('click', async (event) => {
  const copy = event.target.closest('button[data-link]');
  if (copy) {
    const link = new URL(copy.dataset.link, window.location.href).href;
    try {
      await navigator.clipboard.writeText(link);
      copy.textContent = 'Link copied';
    } catch {
      const box = Object.assign(document.createElement('input'), {value: link, readOnly: true, className: 'copied'});
      box.setAttribute('aria-label', 'Link to this history');
      copy.replaceWith(box);
      box.select();
    }
    return;
  }
  const button = event.target.closest('button[data-action]');
  if (button) trigger('pick', {action: button.dataset.action, item: Number(button.dataset.item || -1)});
});
"""
