"""The tables of docs/architecture.md, made from what the tests try.

`PYTHONPATH=src python tests/architecture/docs_table.py` writes them anew.
"""

from pathlib import Path

from harmless import HARMLESS
from mutations import FOUND, UNSEEN

PAGE = Path(__file__).parents[2] / "docs/architecture.md"
BEGIN, END = "<!-- begin: tables -->\n", "<!-- end: tables -->"
MODELS = {"llama": "transformers Llama", "bert": "transformers BERT", "gpt2": "transformers GPT-2",
          "vit": "transformers ViT"}  # fmt: skip


def tables() -> str:
    lines = [f"### Found: {len(FOUND)} changes\n"]
    lines += ["| change | model | finding | where |", "|---|---|---|---|"]
    for case in FOUND:
        finding = f"{case.severity}: `{case.code}`"
        lines.append(f"| {case.name} | {_of(case)} | {finding} | `{case.where}` |")
    lines += [f"\n### Seen by a probe only: {len(UNSEEN)} changes\n"]
    lines += ["| change | model | expected |", "|---|---|---|"]
    lines += [f"| {case.name} | {_of(case)} | `{case.expected}` |" for case in UNSEEN]
    lines += [f"\n### Nothing above a note: {len(HARMLESS)} harmless changes\n"]
    lines.append("; ".join(case.name for case in HARMLESS) + ".")
    return "\n".join(lines) + "\n"


def _of(case) -> str:
    return MODELS.get(case.model, "plain torch")


def page_with(text: str) -> str:
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text()))
