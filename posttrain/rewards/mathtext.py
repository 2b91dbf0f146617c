"""Mathematical answers as text: one way of writing them, and where a line holds its formula."""

# Other scripts' signs are what this module is about.
# ruff: noqa: RUF001, RUF002

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from posttrain.rewards.units import is_variables, unit_name

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "÷": "\\div ", "·": "\\cdot ", "⋅": "\\cdot ",
        "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ",
        "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "∅": "\\emptyset ", "°": "^\\circ ",
        "٫": ".", "٬": ",", "،": ",", "、": ",", "，": ",", "；": ";", "。": ".", "€": "",
        "£": "", "¥": "", "₹": "", "≈": "\\approx ", "∶": ":", "‖": "|",
        "ℝ": "\\mathbb{R}", "′": "'",
        "和": " and ", "或": " or ",
    }
)  # fmt: skip
_SUPERSCRIPTS = {c: str(n) for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-", "⁺": "+", "ⁿ": "n"}
_SUPERSCRIPT = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_VULGAR = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_INNER = r"((?:[^()]|\([^()]*\))*)"
_FUNCTIONS = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp"
# A row end stays; every other space of LaTeX is one, and brackets have one size.
_SPACING = re.compile(
    r"(?P<row>\\\\(?:\s*\[[\d.]+\s*[a-z]{2}\])?)"
    r"|(?P<none>\\!\s*|\\(?:left|right)\.|\\(?:left|right|middle|[bB]igg?[lrm]?|(?:display|text|script)"
    r"style|(?:no)?limits|mathstrut)(?![A-Za-z]))"
    r"|\\(?:[,;:> ]|q?quad|thinspace|enspace|hspace\*?\{[^{}]*\})|~|\s+"
)
_TABLE: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:text[a-z]{2,6}|mbox|mathrm|mathit|mathbf|operatorname\*?)\s*\{", r"\\text{"),
    (r"\\text\s*\{\s*([A-Za-z])\s*\}", r" \1 "),
    (r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}", r" \1 "),
    (r"\\(?:lor|vee)(?![A-Za-z])", " or "),
    (r"\\degree(?![A-Za-z])|\^\s*\{?\s*\\circ\s*\}?", r"^\\circ "),
    (r"\\[lr]brace(?![A-Za-z])", lambda m: "\\{" if m[0] == "\\lbrace" else "\\}"),
    (r"\\[lr]angle(?![A-Za-z])", lambda m: "(" if m[0] == "\\langle" else ")"),
    (r"\\?\$|\\\(|\\\)|\\\[|\\\]", ""),
    (r"√\s*(?:\(" + _INNER + r"\)|(\d+(?:\.\d+)?|[A-Za-z]))", r"\\sqrt{\1\2}"),
    (r"(?<![\\A-Za-z])sqrt\s*\(" + _INNER + r"\)", r"\\sqrt{\1}"),
    (r"\*\*", "^"),
    (r"\^\s*\(" + _INNER + r"\)", r"^{\1}"),
    (r"\^\s*(-?\d{2,}(?!\d*!)|-\d)", r"^{\1}"),
    (rf"(?<![\\A-Za-z{{])({_FUNCTIONS})(?=\s*[\w({{\\^])(?![A-Za-z])", r"\\\1 "),
    (r"(?<![\\A-Za-z{])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
    (r"(?<![\\A-Za-z{])[Pp]i(?![A-Za-z])", r"\\pi "),
    (r"(?<![\w.])(-?\d+(?:\.\d+)?)[eE]\+?(-?\d{1,4})(?!\w)", r"\1 \\times 10^{\2}"),
    (r"\\\{\s*\\\}|\\varnothing(?![A-Za-z])", r"\\emptyset "),
    (r"([\d})])\s*\*?\s*i(?![A-Za-z])", r"\1 i"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    # 1{,}234  1 234 567  1'234 and, outside lists, 1,234; 1.234.567 and 1.234,5; then 1,5
    (r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|[ '’])\d{3})+(?!\d)", lambda m: re.sub(r"\D", "", m[0])),
    (r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,])",
     lambda m: m[0].replace(".", "").replace(",", ".")),
    (r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,])", lambda m: m[0].replace(".", "")),
    (r"(?<=\d)\{,\}(?=\d)", "."),
)  # fmt: skip
_REWRITES = tuple((re.compile(pattern), put) for pattern, put in _TABLE)
_COMMA_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_MIXED = re.compile(
    r"(?<![\w.,}^/)])(-?)(\d+)\s*(?:\\frac\s*\{(\d+)\}\s*\{(\d+)\}|(?<=\d)\s(\d+)\s*/\s*(\d+)(?![\w.]))"
)
_TIMES_BRACKET = re.compile(r"((?<![\w.\\^}])\d+(?:\.\d+)?|\))\s*\((?!\s*mod)")
_SIDE_BY_SIDE = re.compile(r"(?<![\w.^}])(\d+(?:\.\d+)?) (?=\d)")
_OPENS_LIST = re.compile(r"\s*\\?[(\[{]")
_ROWS = re.compile(
    r"\\begin\{(equation|displaymath|math|align|aligned|gather|gathered|multline|eqnarray|split)"
    r"(\*?)\}(.*?)\\end\{\1\2\}",
    re.DOTALL,
)


def plain_math(text: str) -> str:
    r"""Return the text with ASCII digits and signs, numbers ungrouped, LaTeX without padding.

    >>> plain_math("١٬٢٥٠"), plain_math("1{,}250"), plain_math("2 1/2"), plain_math("x² − √3")
    ('1250', '1250', '(2+\\frac{1}{2})', 'x^{2} - \\sqrt{3}')
    >>> plain_math("2\\,\\pi"), plain_math("0{,}5"), plain_math("0.\\overline{3}")
    ('2 \\pi', '0.5', '\\frac{3}{9}')
    """
    text = _SUPERSCRIPT.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _VULGAR.sub(lambda m: f"{m[1]} {unicodedata.normalize('NFKC', m[2])}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = text.replace("⁄", "/")
    if "\\begin" not in text:  # written as in a program's text
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = _ROWS.sub(lambda m: _last_row(m[3]), text)
    text = _SPACING.sub(lambda m: "\\\\ " if m["row"] else "" if m["none"] else " ", text)
    for pattern, put in _REWRITES:
        text = pattern.sub(put, text)
    if not _OPENS_LIST.match(text):
        text = _COMMA_GROUPS.sub(lambda m: m[0].replace(",", ""), text)
    text = _REPEATING.sub(_repeating, text)
    text = _MIXED.sub(_mixed, text)
    if "\\begin" not in text:
        text = _SIDE_BY_SIDE.sub(r"\1, ", _TIMES_BRACKET.sub(r"\1 \\cdot (", text))
    return " ".join(text.split()).lstrip(" ,;").rstrip(" .,;")


def _last_row(rows: str) -> str:
    """Return the statement that a chain of rows ends with, or all rows where each gives a name."""
    if "\\begin" in rows:
        return rows
    statements: list[str] = []
    for row in re.split(r"\\\\(?:\[[^\]]*\])?", rows):
        cells = row.replace("&", " ").replace("\\nonumber", "").strip()
        if cells.startswith(("=", "\\approx")) and statements:
            statements[-1] += " " + cells
        elif cells:
            statements.append(cells)
    names = [re.match(r"[A-Za-z]\w*\s*=", one) for one in statements]
    if len({name[0] for name in names if name}) == len(statements) > 1:
        return ", ".join(statements)
    return statements[-1] if statements else ""


def _repeating(found: re.Match[str]) -> str:
    """Write a repeating decimal as a fraction."""
    whole, start, period = found[1], found[2], found[3]
    over = ("9" * len(period)) + "0" * len(start)
    above = int(whole + start + period) - int(whole + start or "0")
    return f"\\frac{{{above}}}{{{over}}}"


def _mixed(found: re.Match[str]) -> str:
    sign, whole = found[1], found[2]
    above, below = found[3] or found[5], found[4] or found[6]
    if int(above) >= int(below):
        return found[0]
    return f"{sign}({whole}+\\frac{{{above}}}{{{below}}})"


# ---- find the formula in a line

_SPAN = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)|(?<!\\)\$(?P<d>[^$\n]+?)(?<!\\)\$(?!\d)"
    r"|(?P<e>\\begin\{(?P<n>[a-z]+\*?)\}.*?\\end\{(?P=n)\})|\*\*(?P<f>[^*]+)\*\*"
)
_BETWEEN = re.compile(r"[\s,;]*(?:and|[和及与、])?\s*|[^.!?]{0,30}(?:\bor\b|或)[^.!?]{0,30}")
_NO_PROSE = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|textrm|begin|end|operatorname)\*?\s*\{[^{}]*\}|\\[A-Za-z]+"
    rf"|\b(?:{_FUNCTIONS}|sqrt|abs|gcd|lcm|max|min|det|mod|infinity|inf|pi|and|or|percent|pct|percentage|square|sq|cubic|per)\b",
    re.IGNORECASE,
)
_SHORT = frozenset(["is", "it", "we", "so", "to", "of", "in", "an", "at", "he", "by", "my", "be"])
_WORD = re.compile(
    r"(?<![\w\\])(?:[^\W\d_]{3,}|is|it|we|so|to|of|in|an|at|he|by|my|be)(?![\w({^])"
    r"|[\u0400-\u06ff\u0900-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\\?[$€£¥]?[-+±−(\[{|√]*(?:[$€£¥]?\.?\d[^\s\u2e80-\uffff]*|π|[a-zA-Z](?:[²³^_(]\S*)?|\\[A-Za-z]+\S*"
    rf"|(?:sqrt|{_FUNCTIONS})(?![A-Za-z])\S*)|[-+*/=<>≤≥×÷^·±−≈%]+"
)
_PROSE = re.compile(
    r"\s*[,;.]?\s+(?:because|since|not|which|where|when|so|as|for|after|i\.e\.|that)\b.*", re.DOTALL
)
_SENTENCE_END = re.compile(r"(?<=[\w)}\]$%*])[.!?。！？](?:\s+(?=\S)|(?=[\u2e80-\uffff]))")


def is_formula(text: str) -> bool:
    """Return whether a text is formulas and units, without words around them.

    >>> [is_formula(text) for text in ("3 km", "x = 2 or x = 3", "20 xyz", "sqrt(3)", "I see 72")]
    [True, True, True, True, False]
    """
    return not any(
        not (word.isascii() and is_variables(word) and word.casefold() not in _SHORT)
        and not unit_name(word)
        for word in _WORD.findall(_NO_PROSE.sub(" ", text))
    )


def formula_in(text: str, *, leading: bool = False) -> str:
    r"""Return the last formula of a text, or with `leading` the one of its first sentence.

    >>> formula_in("So $x = 1$ or $x = 2$."), formula_in("She has 48+24 = 72 clips left.")
    ('x = 1, x = 2', '48+24 = 72')
    >>> formula_in("4. I hope that 5 is wrong.", leading=True), formula_in("她还剩9页没有看。")
    ('4', '9')
    """
    text = text.strip().strip("*_ ").rstrip("。")
    whole = _SPAN.fullmatch(text.rstrip(". 。"))
    if whole and not whole["f"]:
        inside = _inside(whole)
        return inside if whole["e"] else formula_in(inside) or inside
    if is_formula(text):
        return text if re.search(r"\w|\\", text) else ""
    if leading:
        text = _PROSE.sub("", text, count=1) or text
    sentences: list[str] = _SENTENCE_END.split(text)
    ordered = sentences if leading else sentences[::-1]
    return next((found for one in ordered if (found := _formula_of_sentence(one))), "")


def _inside(span: re.Match[str]) -> str:
    return next(one for one in span.groups() if one).strip()


def _formula_of_sentence(text: str) -> str:
    """Return the formulas between dollar signs and their like, or the bare one that ends it."""
    if is_formula(text):
        return text if re.search(r"\w|\\", text) else ""
    spans = [
        (span, inside)
        for span in _SPAN.finditer(text)
        if (inside := (formula_in if span["f"] else _alone)(_inside(span)))
    ]
    run: list[str] = []
    begun = len(text)
    for span, inside in reversed(spans):
        if run and not _BETWEEN.fullmatch(text[span.end() : begun]):
            break
        run.insert(0, inside)
        begun = span.start()
    tail = text[spans[-1][0].end() :] if spans else text
    bare = _bare_formula(tail)
    ends_it = bare and tail.rstrip(" .!*\"'").endswith(bare.split()[-1])
    if not run or ends_it or (not re.search(r"\d|\\", run[-1]) and re.search(r"\d", bare)):
        return bare or ", ".join(run)
    return ", ".join(run)


def _alone(inside: str) -> str:
    """Return what dollar signs enclose where it is a formula rather than prose between prices."""
    cut_off = re.search(r"^[,=*/;.]|(?:[-+*/=,;]|\band|\bor)$", inside)
    return inside if is_formula(inside) and not cut_off else ""


_JOINTS = {"and": "and", "or": "or", "和": "and", "、": "and", "或": "or", "或者": "or"}
_ATTACHED = re.compile(r"(.*\d)([A-Za-z]{2,}[\d^]*|[A-Za-z][²³])")


def _bare_formula(text: str) -> str:
    """Return the last run of numbers, signs and letters that no words interrupt."""
    text = re.sub(r"\*\*|__|`", " ", text)
    text = re.sub(r"([\u2e80-\ud7af]+)", r" \1 ", text)
    text = re.sub(r"[(\[{][^()\[\]{}A-Za-z]*[)\]}]", lambda m: m[0].replace(" ", ""), text)
    runs: list[str] = []  # formulas, and between them `and`, `or`, a comma or a word
    for raw in text.split():
        token = raw.strip("\"'“”‘’").rstrip(".,;:!?。，、；：")
        if token and _TOKEN.fullmatch(token) and token not in ("a", "A", "I"):
            if attached := _ATTACHED.fullmatch(token):
                token = attached[1]
                if unit := unit_name(unicodedata.normalize("NFKC", attached[2])):
                    token += f" \\text{{{unit}}}"
            if runs and runs[-1] not in _SIGNS_BETWEEN:
                runs[-1] += f" {token}"
            else:
                runs.append(token)
        elif runs and runs[-1][-1:].isdigit() and unit_name(token):
            runs[-1] += f" \\text{{{token}}}"
        else:
            runs.append(_JOINTS.get(raw.casefold().strip(","), "word"))
        if raw[-1:] in ",、，":
            runs.append(",")
        elif raw[-1:] in ".;:!?。；：":
            runs.append("end")
    return _last_list(runs)


_SIGNS_BETWEEN = ("and", "or", ",", "word", "end")


def _last_list(runs: list[str]) -> str:
    """Return the last formula, with those before it to which `and`, `or` or commas join it."""
    while runs and (runs[-1] == "end" or not _valued(runs[-1])):
        if runs.pop() == "word":
            runs = [one if one != "," else "word" for one in runs]
    found: list[str] = []
    while runs and _valued(runs[-1]):
        found.insert(0, runs.pop().strip("-+*/=<>,^·×÷ ") if found else runs.pop())
        joint = ""
        while (
            runs
            and runs[-1] in ("and", "or", ",", "word")
            and (joint == "or" or runs[-1] != "word")
        ):
            joint = "or" if "or" in (joint, runs[-1]) else runs[-1]
            runs.pop()
        if not joint:
            break
    return ", ".join(re.sub(r"[-+*/=<>,^·×÷\s]+$", "", one) for one in found)


def _valued(run: str) -> bool:
    return run not in _SIGNS_BETWEEN and (
        re.search(r"\d|\\[A-Za-z]|π|[A-Za-z]\s*[-+*/=^]", run) is not None
    )
