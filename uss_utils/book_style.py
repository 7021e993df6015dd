"""How the book looks: settings of its theme, and rules for what notebooks show."""

from uss_utils.pages import MATH_CSS

THEME = {"navigation_with_keys": True}
CSS = (
    MATH_CSS
    + """
div.formula { overflow-x: auto; overflow-y: hidden; margin: .8rem 0; }
div.formula math { padding: .4rem 0; }

/* Code is framed by the notebook's cell; what it printed is set apart from it. */
div.cell { margin: 1rem 0; }
div.cell div.cell_input { border: 0; border-radius: .2rem;
  border-left: .2rem solid var(--color-brand-primary); }
div.cell div.cell_output { padding-left: .2rem; margin-top: .5rem; }
div.cell_output .output.stream div.highlight,
div.cell_output .output.text_plain div.highlight { background: none; }
div.cell_output .output.stream pre, div.cell_output .output.text_plain pre {
  background: none; padding: .1rem 0; line-height: 1.4; }

/* Figures are drawn on white, whatever the page's colour. */
div.cell_output img { background: #fff; max-width: 100%; height: auto; }
div.cell_output .highlight { overflow-x: auto; }

/* Tables wider than the page are moved aside on their own. */
div.cell_output table, article table.docutils { font-size: 85%; margin-left: 0; }
article td { vertical-align: top; }
div.cell_output .output.text_html, div.cell_output .output.text_markdown {
  overflow-x: auto; }

details { border: 1px solid var(--color-background-border); border-radius: .3rem;
  padding: .4rem .9rem; margin: 1rem 0; }
details > summary { cursor: pointer; color: var(--color-brand-content); }

h1 { font-size: 2rem; }
h2 { font-size: 1.5rem; }
@media (max-width: 46em) {
  :is(p, li):has(> math) { overflow-x: auto; overflow-y: hidden; }
  h1 { font-size: 1.6rem; }
  h2 { font-size: 1.3rem; }
  pre { font-size: 75%; }
}
"""
)
