"""One HTML page of a segmented folder: every picture, its shares, what was skipped.

It opens from the disk without a network, and stays light with thousands of pictures:
thumbnails are loaded as they come into view.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from uss_utils.paths import atomic_file

CSS = """
body { max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; margin: 1.6rem 0 .6rem; }
h1 { margin-top: 0; }
.facts { color: #555; margin: .2rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: .6rem 0;
          position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ddd; }
.legend span, .shares span { white-space: nowrap; }
.swatch { display: inline-block; width: .95em; height: .95em; margin-right: .35em;
          border: 1px solid #0005; vertical-align: -.1em; }
.sheet { display: grid; gap: 1.2rem;
         grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); }
figure { margin: 0; padding: .6rem; border: 1px solid #ddd; border-radius: .4rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto .4rem; }
figcaption { font-size: 85%; overflow-wrap: anywhere; }
.bar { display: flex; height: .7rem; margin: .3rem 0; border: 1px solid #0003; }
.shares { display: flex; flex-wrap: wrap; gap: 0 .8rem; color: #444; }
table { border-collapse: collapse; font-size: 90%; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd;
         text-align: left; vertical-align: top; overflow-wrap: anywhere; }
a { color: #2a5db0; }
.warning { color: #a33; font-weight: bold; }
"""
NONE = {"name": "no class", "colour": "#808080"}
LISTED = 6  # shares told in words under a picture; the bar shows all


def write(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``index.html`` beside the folders ``labels``, ``overlays`` and ``thumbs``.

    Args:
        out: folder of the results.
        summary: what :func:`uss_utils.photo_folder.segment_folder` found.

    Returns:
        The page.

    Raises:
        OSError: it cannot be written.
    """
    path = out / "index.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page(summary), encoding="utf-8")
    return path


def page(summary: Mapping[str, Any]) -> str:
    """The page as text; every name in it is escaped."""
    colours = {str(row["id"]): row for row in summary["legend"]} | {"-1": NONE}
    title = f"{html.escape(summary['folder'])}, segmented"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{CSS}</style></head>\n<body>",
        f"<h1>{title}</h1>",
        *_facts(summary),
        _legend(summary, colours),
        '<div class="sheet">',
        *(_figure(*item, colours) for item in summary["pictures"].items()),
        "</div>",
        _skipped(summary["skipped"]),
        _judged(summary),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _facts(summary: Mapping[str, Any]) -> list[str]:
    model, options = summary["model"], summary["settings"]
    count, skipped = len(summary["pictures"]), len(summary["skipped"])
    told = f"{count} picture{'s' * (count != 1)}"
    if skipped:
        told += f', <a href="#skipped">{skipped} file{"s" * (skipped != 1)} skipped</a>'
    words = [
        f"{model['method']}, preset {model['preset']}, on {model['backbone']}",
        f"{model['clusters']} clusters",
        f"longer side at most {options['max_side']} pixels for the network",
    ]
    if options["crf"]:
        words.append("sharpened by the dense CRF")
    lines = [
        f'<p class="facts">{told}. {html.escape("; ".join(words))}. '
        '<a href="summary.json">summary.json</a> '
        '<a href="legend.png">legend.png</a></p>'
    ]
    if model["untrained"]:
        lines.append('<p class="warning">Untrained weights: this means nothing.</p>')
    return lines


def _swatch(row: Mapping[str, Any]) -> str:
    return f'<i class="swatch" style="background:{row["colour"]}"></i>'


def _legend(summary: Mapping[str, Any], colours: Mapping[str, Any]) -> str:
    """Colours and names, and the share of each in a picture on average."""
    shares = summary["shares"]
    present = [k for k in colours if k in shares]
    lines = [
        f"<span>{_swatch(colours[k])}{html.escape(colours[k]['name'])} "
        f"{shares[k]:.0%}</span>"
        for k in present
    ]
    unused = [row["name"] for k, row in colours.items() if k not in present]
    unused = [html.escape(name) for name in unused if name != NONE["name"]]
    if unused:
        lines.append(f"<span>nowhere: {', '.join(unused)}</span>")
    return f'<div class="legend">{" ".join(lines)}</div>'


def _figure(name: str, picture: Mapping[str, Any], colours: Mapping[str, Any]) -> str:
    shares = sorted(picture["shares"].items(), key=lambda item: -item[1])
    bar = "".join(
        f'<i style="width:{share:.2%};background:{colours[k]["colour"]}"></i>'
        for k, share in shares
    )
    told = " ".join(
        f"<span>{_swatch(colours[k])}{html.escape(colours[k]['name'])} {share:.0%}"
        "</span>"
        for k, share in shares[:LISTED]
    )
    overlay, label = (
        quote(f"{place}/{name}{ending}")
        for place, ending in (("overlays", ".jpg"), ("labels", ".png"))
    )
    return (
        f'<figure><a href="{overlay}"><img loading="lazy" decoding="async" '
        f'src="{quote(f"thumbs/{name}.jpg")}" alt="{html.escape(name)}"></a>'
        f"<figcaption><b>{html.escape(picture['file'])}</b> "
        f"{picture['width']}&times;{picture['height']} "
        f'<a href="{overlay}">overlay</a> <a href="{label}">labels</a>'
        f'<div class="bar">{bar}</div><div class="shares">{told}</div>'
        "</figcaption></figure>"
    )


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(reason)}</td></tr>"
        for name, reason in skipped.items()
    )
    return (
        '<h2 id="skipped">Skipped files</h2>\n<table>'
        f"<tr><th>file</th><th>why</th></tr>\n{rows}\n</table>"
    )


# What a number can tell; none is a score.
_MONITORS = {
    "usage_entropy": "evenness of the clusters: 1 all alike, 0 one took everything",
    "used": "clusters with at least a hundredth of the pixels",
    "agreement_within": "features and code agree which patches of a picture are akin",
    "agreement_across": "and which patches of two pictures are",
    "edges_on_borders": "share of the pictures' strong edges that lie on borders",
    "pixels_on_borders": "the share that borders drawn blindly would reach",
}


def _judged(summary: Mapping[str, Any]) -> str:
    """Scores where there are labels, and the monitors that need none."""
    rows, record = [], summary.get("record", {})
    for key, value in record.get("headline", {}).items():
        if value is not None:
            name = key.replace("_", " ").replace("miou", "mIoU")
            rows.append((name, f"{value:.1f} %", "by the labels"))
    for key, meaning in _MONITORS.items():
        if key in summary.get("monitors", {}):
            value = summary["monitors"][key]
            number = value if isinstance(value, int) else f"{value:.2f}"
            rows.append((key.replace("_", " "), number, meaning))
    lines = "\n".join(
        f"<tr><td>{name}</td><td>{number}</td><td>{html.escape(meaning)}</td></tr>"
        for name, number, meaning in rows
    )
    if "not_scored" in summary:
        note = f"Not scored: {summary['not_scored']}"
    else:
        note = record.get("protocol", {}).get("line", "")
    note = f'<p class="facts">{html.escape(note)}</p>' if note else ""
    if not rows:
        return note
    return f"<h2>Numbers</h2>\n<table>\n{lines}\n</table>\n{note}"
