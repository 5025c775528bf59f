"""Words of a caption, as caption metrics count them.

Published CIDEr and METEOR are of words that pycocoevalcap 1.2 has from the PTBTokenizer of Stanford CoreNLP
3.4.1, a Java program. This splits the same way without Java: contractions and possessives ("do n't",
"dog 's"), compounds with hyphens or slashes in one piece, full stops that belong to abbreviations, numbers,
signs of currency. Tests compare it with the program. The two differ where captions have nothing: emoticons,
telephone numbers, addresses of mail, HTML; an apostrophe inside a word is always straight here; and each
caption is read alone, where the program lets the first word of the next caption say whether "No." is an
abbreviation.
"""

import re
from collections.abc import Iterator

from samtok.metrics.referring import Mode

_PUNCTUATION = {".", "?", "!", ",", ":", ";", "-", "--", "...", "'", "''", '"'}
"""What pycocoevalcap leaves out; quotes as they are after ``_SIGNS``."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_ABBREVIATIONS = (
    "adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|asst|atty|aug|ave|bancorp|bhd|bldg|blvd|brig|bros|calif|capt|"
    "cf|cie|cmdr|co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|elec|ens|esq|est|etc|ext|feb|"
    "fla|fri|ft|ga|gen|gov|govs|hon|inc|ind|insp|intl|invt|jan|jos|jr|jul|jun|kan|kans|ky|lieut|lt|ltd|maj|mar|"
    "md|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|"
    "plc|ppte|ppty|pres|prof|profs|pte|ptes|pty|ptys|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|"
    "sq|sr|st|sta|ste|supt|supts|sys|tel|tenn|thu|thurs|treas|tue|tues|univ|va|vs|vt|wed|wis|wisc|wm|wyo"
)
"""Keep their full stop, as the program answers for all words of up to four letters and usual longer ones."""

_CAPITAL_ABBREVIATIONS = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_BEFORE_NUMBERS = "art|ca|fig|figs|no|nos|op|pp"

_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|"
    "Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
"""Begin a sentence, so that a single letter before them does not keep its full stop."""

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u2039\u203a`", "'"),  # single quotes of all kinds
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2012\u2013\u2014\u2015", " -- "),
        **{"\u2026": " ... ", "\u2011": " "},  # the program drops a hyphen that does not break
        **{sign: f" {sign} " for sign in "¹²³⅛⅜⅝⅞"},  # parts of words to Python
        **{"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "},
        **{"€": " $ ", "£": " # ", "¢": " cents "},
    }
)

_SPLITS = re.compile(  # places inside a word where another begins
    r"(?i)(?<=[^\W\d_])(?=n't(?![^\W\d_]))|(?<=\w)(?='(?:[smd]|re|ve|ll)(?![^\W\d_]))"
    r"|(?<=\bcan)(?=not\b(?!-\w|'s))|(?<=\bgon|\bwan)(?=na\b(?!-\w|'s))|(?<=\bgot)(?=ta\b(?!-\w|'s))"
    r"|(?<=\bgim|\blem)(?=me\b(?!-\w|'s))|(?<=\B't)(?=is\b|was)|(?<=\bmore)(?='n\b)|(?<=\by')(?=\w)"
)

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]+(?:_[^\W_]+)*"
_END = r"(?![^\W\d_])"
_DOTTED = rf"{_LETTER}[^\W_]*(?:[.!?]{_LETTER}[^\W_]*)+"  # a full stop without a space ends no word
_INITIALS = rf"(?:{_LETTER}\.)+"
_PART = rf"[^\W_]+(?:-{_LETTER}+){{0,2}}"
_STOP = r"(?:\.(?=[,;:]))?"  # before other punctuation, any word keeps its full stop

_RULES = (  # the first that fits wins
    r"[A-Za-z]{2,}(?=,?(?!\S))",  # most words; for speed, since others give the same
    r"</?[A-Za-z!][^<>\n]*>",
    r"https?://[^\s\"<>]*[\w/]",
    r"(?<![\w.+-])[\w.+-]*\w@\w[\w.-]*\w",
    r"[@#][A-Za-z_]\w*",
    rf"(?i:'n'|'(?:em|till?|cause|n|[2-9]0s|[smd]|re|ve|ll){_END}|'t(?= )|'\d\d(?!\S)|n't{_END})",
    rf"(?i:(?:c'mon|ev'ry|li'l|nat'l|nor'easter|s'mores){_END}|(?:ol|somethin|dunkin)'{_END})",
    rf"(?i:(?:[dolcns]|qu)'){_LETTER}[^\W_]*(?:-{_ALNUM})*",
    rf"(?i:[dlj]'{_END}|y'(?= \w))",
    rf"{_LETTER}*[aeiouyAEIOUY]'[aeiouA-Z]{_LETTER}*",
    rf"\d{{1,4}}[ -]\d{{1,4}}/\d{{1,4}}{_END}",
    rf"{_PART}(?:/{_PART}){{1,2}}",
    rf"[^\W_](?:_?[^\W_]|[.,])*(?:-(?:{_LETTER}\.{_INITIALS}|{_ALNUM}))+{_STOP}",
    rf"{_LETTER}(?=\.\s+(?:(?:{_STARTERS})(?!\S)|M[rs]\.))",
    rf"(?i:{_INITIALS}|(?:ph|ed)\.d\.)(?!{_LETTER})",
    rf"{_DOTTED}{_STOP}",
    rf"(?i:{_ABBREVIATIONS})\.|(?:{_CAPITAL_ABBREVIATIONS})\.|(?i:{_BEFORE_NUMBERS})\.(?= ?\d)",
    rf"(?:[-+]?(?:[.,:]\d+)+|[-+]\d+(?:[.,:]\d+)*|\d+(?:[.,:]\d+)+){_STOP}",
    r"(?:[A-Z]+[+&])+[A-Z]+|[Cc]\+\+|[CcFf]\#|[A-Z]{1,2}\$",
    rf"{_ALNUM}{_STOP}",
    r"\.\.\.|--|[?!]+|\*+|_+|''|\S",
)
_TOKEN = re.compile("|".join(f"(?:{rule})" for rule in _RULES))


def words_of(text: str, *, mode: Mode = "strict") -> list[str]:
    """Returns the words of a caption, lower case; an empty caption has none.

    Punctuation is left out: full stop, comma, colon, semicolon, a question or exclamation mark, hyphens and
    dashes that stand alone, ellipses and quotes. "strict" leaves out brackets and repeated marks ("!!") too.
    pycocoevalcap means to leave out brackets, but looks for them in upper case in text that is lower case;
    "official" has them as the words ``-lrb-``, ``-rrb-``, ``-lsb-`` and so on.
    """
    return [word for token in _tokens(text) if (word := _word(token, mode))]


def _tokens(text: str) -> Iterator[str]:
    plain = text.replace("&amp;", "&").translate(_SIGNS)
    for match in _TOKEN.finditer(_SPLITS.sub(" ", plain)):
        yield from match[0].lower().split()


def _word(token: str, mode: Mode) -> str:
    """Returns a token as a word, "" if it is none."""
    if token in _PUNCTUATION or (mode == "strict" and (token in _BRACKETS or not token.strip("?!"))):
        return ""
    return _BRACKETS.get(token, token)
