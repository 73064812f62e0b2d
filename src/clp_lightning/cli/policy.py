"""The commands that ask a policy: `clp generate` and `clp export`."""

import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clp_lightning.errors import ClpError, UsageError, make


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Texts to work on; without any, one per line of standard input.")
    ] = None,
    model: Annotated[
        Path, typer.Option(help="Folder of a steerable policy, or the word champion: the policy in use.")
    ] = Path("models/clp-full"),
    weighting: Annotated[
        list[str] | None,
        typer.Option(help="Trade-off, e.g. informativeness=0.8,readability=0.2; repeat it to compare several."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 is greedy: the same text each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the most probable tokens of this probability together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each text; they need a temperature.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="An answer ends before this text; repeat it to name several.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; the model's own limit by default.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="KL strength, for a policy that takes one.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision: auto (float32 on a CPU), float32, bfloat16 or float16.")
    ] = "auto",
    messages: Annotated[
        bool, typer.Option("--messages", help='A prompt is a chat: [{"role": "user", "content": "..."}], in JSON.')
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer.")] = False,
) -> None:
    """Generate text at a trade-off.

    Example: clp generate --model models/clp-full --weighting informativeness=0.8,readability=0.2 "create bucket: The name of ..."
    """
    if samples > 1 and temperature == 0:
        raise UsageError(f"--samples {samples}: at temperature 0 all would be the same; give e.g. --temperature 1")
    texts = prompts if prompts else _standard_input()
    for row, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"prompt {row + 1} is empty; give some text to work on")
        # what Python makes of an argument's bytes that are not UTF-8
        if any("\udc80" <= character <= "\udcff" for character in text):
            raise UsageError(f"prompt {row + 1} is not UTF-8; write it so, or give it on standard input")
    if messages:
        texts = [_chat(row, text) for row, text in enumerate(texts, 1)]
    from clp_lightning.promotion import champion

    model = champion.resolve(model)
    objectives = _objectives(model)
    from clp_lightning import weightings as simplex

    if not weighting:
        example = simplex.describe([1 / len(objectives)] * len(objectives), objectives)
        raise UsageError(f"give at least one --weighting over {', '.join(objectives)}, e.g. {example}")
    rows = [simplex.parse(text, objectives) for text in weighting]  # checked before the model is loaded

    import numpy as np

    from clp_lightning.policy.loading import answering_dtype
    from clp_lightning.policy.steerable import SteerablePolicy

    policy = SteerablePolicy.from_pretrained(model, dtype=answering_dtype(dtype))
    if note := policy.template.check(texts):
        print(f"clp: warning: {note}", file=sys.stderr)

    answers = policy.generate(
        [text for text in texts for _ in rows],
        np.tile(np.stack(rows), (len(texts), 1)),
        alphas=alpha,
        temperature=temperature,
        top_p=top_p,
        stop=stop or (),
        samples=samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    trade_offs = [simplex.describe(row.tolist(), objectives) for row in rows]
    asked = [(text, trade_off) for text in texts for trade_off in trade_offs for _ in range(samples)]
    if as_json:
        for (text, trade_off), answer in zip(asked, answers, strict=True):
            print(json.dumps({"prompt": text, "weighting": trade_off, "response": answer}, ensure_ascii=False))
    elif len(rows) == 1:
        print("\n".join(answers))
    else:
        table = Table("document", "weighting", "answer", show_lines=True)
        for row, ((text, trade_off), answer) in enumerate(zip(asked, answers, strict=True)):
            shown = Text("" if row % (len(rows) * samples) else text)  # Text: brackets of a document are no markup
            table.add_row(shown, "" if row % samples else trade_off, Text(answer))
        Console().print(table)


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier export there is replaced.")],
    weighting: Annotated[str, typer.Option(help="Trade-off to keep, e.g. informativeness=0.8,readability=0.2.")],
    model: Annotated[
        Path, typer.Option(help="Folder of a steerable policy, or the word champion: the policy in use.")
    ] = Path("models/clp-full"),
    format: Annotated[
        str, typer.Option(help="hf: a whole model for transformers; peft: an adapter of the base.")
    ] = "hf",
    alpha: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="KL strength, for a policy that takes one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the files: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write one trade-off of a policy as a plain model that other tools load.

    Example: clp export --weighting informativeness=0.8,readability=0.2 --format hf build/exported
    """
    from clp_lightning.promotion import champion

    model = champion.resolve(model)
    objectives = _objectives(model)
    from clp_lightning import weightings as simplex
    from clp_lightning.files import check_replaceable, read_json
    from clp_lightning.paths import NOTE

    row = simplex.parse(weighting, objectives)
    check_replaceable(out, NOTE)

    from clp_lightning.policy.folder import load_dtype
    from clp_lightning.policy.steerable import SteerablePolicy

    SteerablePolicy.from_pretrained(model, dtype=load_dtype(dtype)).export(row, out, format, alpha=alpha)
    loader = "transformers" if format == "hf" else "peft"
    print(f"wrote {out} at {simplex.describe(row.tolist(), objectives)}; {loader} loads it")
    if lines := read_json(out / NOTE, remedy="export it again").get("before_merging"):
        print(f"before PeftModel.from_pretrained(model, ...) and merging, untie the base: {'; '.join(lines)}")


def _objectives(model: Path) -> list[str]:
    """Read a policy's objectives from its card, before anything heavy is loaded."""
    from clp_lightning.files import read_json

    if not (model / "clp.json").is_file():
        raise ClpError(
            f"no steerable model at {model}; {make('repro')} writes models/clp-full, or name a folder with --model"
        )
    remedy = f"run {make('repro')} to write it again"
    objectives = read_json(model / "clp.json", remedy=remedy, keys={"objectives": list})["objectives"]
    if not objectives or not all(isinstance(name, str) for name in objectives):
        raise ClpError(f"{model / 'clp.json'}: objectives: expected names, but found {objectives!r}; {remedy}")
    return objectives


def _chat(row: int, text: str) -> str:
    """Return the conversation that a prompt in JSON is."""
    from clp_lightning.data.transcripts import from_messages

    try:
        document, answer = from_messages(json.loads(text))
    except ValueError as error:
        reason = "it is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UsageError(
            f'prompt {row}: {reason}; with --messages a prompt is [{{"role": "user", "content": "..."}}] on one line'
        ) from error
    if answer is not None:
        raise UsageError(f"prompt {row}: the last message is the assistant's; end with what it is to answer")
    return document


def _standard_input() -> list[str]:
    if sys.stdin.isatty():
        raise UsageError("no prompt; give texts as arguments or one per line on standard input")
    from clp_lightning.files import utf8

    # bytes, since what Python makes of them depends on the locale; line ends as it reads them from a text
    text = utf8(sys.stdin.buffer.read(), "standard input")
    lines = [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UsageError("prompt is empty: standard input held no text; give one text per line")
    return texts


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(generate)
    app.command()(export)
