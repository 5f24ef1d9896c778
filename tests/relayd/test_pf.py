"""What pfctl prints is understood, or all of it is refused; nothing else is ever asked of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.core.proof import Pf
from hactl.relayd import pf
from hactl.relayd.command import CommandError, Ended, Failure
from hactl.relayd.pf import Pfctl, PfError

# As pfctl of OpenBSD writes them: pfctl_parser.c and pfctl_table.c.
RULES = """\
match in all scrub (no-df)
block return all
anchor "relayd/*" all
pass out quick on em1 inet proto tcp from any to 10.0.0.0/24 flags S/SA tagged RELAYD
anchor "spam" in on em0 all {
  pass in proto tcp from any to any port = 25 flags S/SA
}
"""
SOURCES = """\
192.0.2.77 rdr-to 10.0.0.4 ( states 1, connections 3, rate 0.0/0s )
192.0.2.78 rdr-to 10.0.0.4 ( states 0, connections 0, rate 0.0/0s )
2001:db8::77 rdr-to 2001:db8::4 ( states 1, connections 0, rate 0.1/60s )
192.0.2.79 ( states 1, connections 0, rate 0.0/0s )
"""
OLD_SOURCE = "192.0.2.77 -> 10.0.0.4 ( states 1, connections 3, rate 0.0/0s )\n"
NO_TABLE = Ended(255, "", "pfctl: Table does not exist.\n")


class Fake:
    """Programs whose answers are given by their words."""

    def __init__(self, answers: Mapping[str, str | Ended]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def run(self, program: str, arguments: Sequence[str]) -> Ended:
        words = " ".join(arguments)
        self.asked.append(f"{program} {words}")
        answer = self.answers.get(words, NO_TABLE)
        return Ended(0, answer, "") if isinstance(answer, str) else answer


def read(fake: Fake, *names: str, last: Pf | None = None, wide: bool = True) -> Pf:
    return asyncio.run(Pfctl(fake).read(names, last, wide=wide))


FULL: dict[str, str | Ended] = {
    "-a relayd/mx -t mx -T show": "   10.0.0.4\n   2001:DB8:0::4\n",
    "-a relayd/mx -sr": "pass in quick inet proto tcp from any to 192.0.2.1 port = 25\n",
    "-sr": RULES,
    "-sS": SOURCES,
}


def test_tables_rules_anchors_and_sources_are_read() -> None:
    found = read(Fake(FULL), "mx", "imap")
    assert found == Pf(
        found.at,
        {"mx": ("10.0.0.4", "2001:db8::4"), "imap": ()},
        frozenset({"mx"}),
        frozenset({"mx", "imap"}),
        {"10.0.0.4": 2, "2001:db8::4": 1},
    )


def test_a_narrow_look_asks_for_tables_alone_and_keeps_the_rest() -> None:
    fake = Fake(FULL)
    last = Pf(0.0, {}, frozenset({"mx"}), frozenset(), {"10.0.0.9": 1})
    found = read(fake, "mx", last=last, wide=False)
    assert fake.asked == ["pfctl -a relayd/mx -t mx -T show"]
    assert found.tables["mx"][0] == "10.0.0.4"
    assert (found.rules, found.anchored) == (last.rules, last.anchored)
    assert found.sources == {"10.0.0.9": 1}


@pytest.mark.parametrize(
    ("anchor", "called"),
    [
        ("relayd/*", True),
        ("relayd/mx", True),
        ("*", True),
        ("relayd/imap", False),
        ("relayd", False),
    ],
)
def test_which_anchors_call_relayds(anchor: str, called: bool) -> None:
    found = read(Fake(FULL | {"-sr": f'anchor "{anchor}" all\n'}), "mx")
    assert ("mx" in (found.anchored or ())) is called


@pytest.mark.parametrize(
    ("words", "answer", "says"),
    [
        ("-a relayd/mx -t mx -T show", "   10.0.0.4\n   10.0.0", "line 2 is cut"),
        ("-a relayd/mx -t mx -T show", "mx0\n", "line 1: 'mx0' is no address"),
        ("-a relayd/mx -t mx -T show", "   10.0.0.4\n\n", "line 2: '' is no address"),
        ("-a relayd/mx -t mx -T show", "   10.0.0.4\n\x1b[2J\n", "line 2: a control character"),
        ("-a relayd/mx -sr", "hello\n", "line 1: 'hello' is no rule"),
        ("-sr", RULES[:-3], "is cut"),
        ("-sS", OLD_SOURCE.replace("10.0.0.4", "mx0"), "line 1: 'mx0' is no address"),
        ("-sS", "nothing\n", "line 1: 'nothing' is no source entry"),
        ("-sr", Ended(1, "", "pfctl: /dev/pf: Permission denied\n"), "exit 1: '/dev/pf: Permission denied'"),
        ("-sr", Ended(0, "", ""), None),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused_as_a_whole(
    words: str, answer: str | Ended, says: str | None
) -> None:
    if says is None:
        assert read(Fake(FULL | {words: answer}), "mx").anchored == frozenset()
        return
    with pytest.raises(PfError) as error:
        read(Fake(FULL | {words: answer}), "mx")
    assert str(error.value).startswith(f"pfctl {words}: ")
    assert says in str(error.value)


def test_sources_as_older_releases_write_them() -> None:
    assert pf.parse_sources(OLD_SOURCE) == {"10.0.0.4": 1}


def test_entries_that_relayd_never_makes_are_shown_as_they_are() -> None:
    assert pf.parse_table("   10.0.0.0/24\n   !10.0.0.9\n") == ("10.0.0.0/24", "!10.0.0.9")


def test_a_pfctl_that_does_not_run_is_an_error() -> None:
    class Broken:
        async def run(self, program: str, arguments: Sequence[str]) -> Ended:
            raise CommandError(Failure.NOT_RUN, "/sbin/pfctl: No such file or directory")

    with pytest.raises(PfError, match=r"pfctl -a relayd/mx .*: /sbin/pfctl: No such file"):
        asyncio.run(Pfctl(Broken()).read(["mx"], None, wide=False))


@pytest.mark.parametrize(
    ("what", "address", "words"),
    [
        ("sources", "10.0.0.4", "-K 0.0.0.0/0 -K 10.0.0.4"),
        ("states", "2001:DB8::4", "-k ::/0 -k 2001:db8::4"),
    ],
)
def test_kills_name_one_address(what: str, address: str, words: str) -> None:
    fake = Fake({words: Ended(0, "", "killed 1 states from 1 sources and 1 destinations\n")})
    asyncio.run(Pfctl(fake).kill(what, address))
    assert fake.asked == [f"pfctl {words}"]


@pytest.mark.parametrize("address", ["", "0.0.0.0/0", "mx0", "-F all", "10.0.0.4 -F"])
def test_kills_take_nothing_but_an_address(address: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        pf.kill("states", address)


@pytest.mark.parametrize("name", ["", "-F", "a b", "../x", "a/b", "a" * 32, "é", "a\n"])
def test_names_that_are_not_asked_for(name: str) -> None:
    assert not pf.usable(name)


@given(st.data())
def test_an_answer_cut_or_mutated_is_read_or_refused(data: st.DataObject) -> None:
    parse, text = data.draw(
        st.sampled_from(
            [
                (pf.parse_table, "   10.0.0.4\n   2001:db8::4\n"),
                (pf.parse_rules, RULES),
                (pf.parse_sources, SOURCES),
            ]
        )
    )
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    mutated = text[:start] + data.draw(st.text(max_size=5)) + text[end:]
    with contextlib.suppress(pf.NonsenseError):
        parse(mutated)
