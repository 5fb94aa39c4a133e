"""Values that no careful person would give."""

from hypothesis import strategies as st

# what has broken programs before: separators, ends of strings, of lines and of names, markup, formulas
BLANK = ("", " ", "\x85", "\u2028", "\ufeff", "-", "--")
CONTROL = ("\0", "a\0b", "a\nb", "a\rb", "\x1b[31mred\x1b[0m", "\u202egnp.exe")
UNICODE = ("\ud800", "a\udcffb", "\U0001f600", "e\u0301")
PATHS = ("..", "../../x", "/etc/passwd", "~nobody/x", "C:\\con", "nul")
NUMBERS = ("-1", "nan", "inf", "1e999", "9" * 400, "9" * 5000, "x" * 5000)
MARKUP = ("[/bold]", "[link=http://x]y[/link]", "$x^{", "<script>alert(1)</script>", "|a|b|")
LINKS = ('"><img src=x onerror=alert(1)>', "[x](javascript:alert(1))", "](x) [y]: javascript:alert(1)")
MARKDOWN = (
    "a](http://evil/p.png) ![b](http://evil/q.png)",
    "[a]: http://evil/p.png",
    "<http://evil/p.png>",
    "<1@evil.com>",
    "![](http://evil/p.png)",
    "&lt;b&gt; &#x5b;x] &copy;",
    "**bold** _lean_ ~~gone~~ `code` ``` ~~~ __init__ a__b *x",
    "# a #",
    "> a",
    "1. a",
    "2)",
    "- a",
    "+",
    "- - -",
    "===",
    "[x] done",
    "a\\",
    "C:\\con \\| \\* \\",
    "| - | - |",
)
FORMULAS = ("=1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", "{0.__class__}", "%s%n", "'; DROP TABLE runs; --")
NASTY = BLANK + CONTROL + UNICODE + PATHS + NUMBERS + MARKUP + LINKS + MARKDOWN + FORMULAS
any_text = st.text(st.characters(), max_size=30)  # lone surrogates among them
texts = st.sampled_from(NASTY) | any_text
numbers = (
    st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**400, -(10**400), 10**4000])
)
values = texts | numbers | st.booleans() | st.none() | st.lists(texts, max_size=2) | st.binary(max_size=4)
