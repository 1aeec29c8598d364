"""Scope of a model: anatomies, sequences, structures, findings and tasks of its training data, and refusals of other questions.

A question is refused if it names another anatomy, sequence or structure, asks for no trained task, or names nothing that the model
was trained to find. An image is refused if its header states another anatomy. If the header states
none, the anatomy is that of the question, or of the nearest training images (:mod:`components.inference.familiarity`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import BadInput
from components.files import read_json, write_json
from components.ingestion.body_parts import is_within
from components.ingestion.deidentification.allowlists import FINDINGS
from components.ingestion.sequence_classification import canonical_sequence, sequence_names
from components.registries import TASKS
from components.tasks.findings import ANY
from components.tasks.question_words import (
    BODY,
    GENERIC,
    IMAGE_WORDS,
    OTHER_MODALITIES,
    OTHER_PARTS,
    STOP,
    STYLES,
    Term,
    has_cue,
    longest_terms,
    normalize,
    respell,
    split_words,
    tokens,
)

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord
    from components.tasks.base import Task

SCOPE = "scope.json"
FAMILIARITY, FEATURES = "familiarity.json", "familiarity.npz"
"""Training images in the features of the model (:mod:`components.inference.familiarity`): figures, arrays."""
EXAMPLES = 3
"""Example questions for each task."""
_AND = ("and", "or", "plus")
_PLACEHOLDER = re.compile(r"{(\w+)}")
_YES_OR_NO = ("is", "are", "was", "were", "do", "does", "did", "has", "have", "any", "anything")
"""Words with which a question begins that yes or no answers. "Can you ..." also asks for a mask or a place."""
_OTHER_QUESTIONS = frozenset(("other", "else", "besides", "except", "than", "how", "what", "which", "why", "when"))
"""Words of questions about a finding that ask for more than whether it is there."""
_IMAGE_WORDS = frozenset(map(normalize, (*IMAGE_WORDS, *STYLES)))
_GENERIC_TERMS = frozenset(map(tokens, GENERIC))


class OutOfScope(BadInput):
    """A question that the model was not trained to answer."""


@dataclass(frozen=True)
class Scope:
    """Content of the training data of a model.

    Attributes:
        tasks: names of tasks.
        anatomies, sequences: of the training volumes, those that are known.
        structures, findings: anatomy -> names that instructions ask for, lower case; "" = an unknown anatomy.
        elsewhere: names of structures and findings that other datasets of the catalog label.
        words: further words of the training instructions.
        examples: task -> questions of the training data.
    """

    tasks: tuple[str, ...]
    anatomies: tuple[str, ...]
    sequences: tuple[str, ...]
    structures: Mapping[str, Sequence[str]]
    findings: Mapping[str, Sequence[str]]
    elsewhere: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def from_corpus(cls, corpus: Corpus) -> Scope:
        """Return the scope of a model that is trained on the training split of a corpus."""
        volumes = {key: volume for key, volume in corpus.volumes.items() if volume.split == "train"}
        structures: dict[str, set[str]] = defaultdict(set)
        findings: dict[str, set[str]] = defaultdict(set)
        questions: dict[str, dict[str, None]] = defaultdict(dict)
        records: list[InstructionRecord | VolumeInstructionRecord] = [*corpus.instructions, *corpus.volume_instructions]
        for record in records:
            if record.volume_id not in volumes or record.split != "train":
                continue
            anatomy = (volumes[record.volume_id].anatomy or "").lower()
            questions[record.task][record.instruction] = None
            if record.structure:
                structures[anatomy].add(record.structure.lower())
            findings[anatomy] |= {name.lower() for name in _findings_of(record)}
        words = {word for asked in questions.values() for text in asked for word in tokens(text)} - STOP
        return cls(
            tuple(name for name in TASKS if name in questions),
            tuple(sorted({volume.anatomy.lower() for volume in volumes.values() if volume.anatomy})),
            tuple(sorted({name for volume in volumes.values() if (name := canonical_sequence(volume.sequence))})),
            {anatomy: sorted(names) for anatomy, names in sorted(structures.items())},
            {anatomy: sorted(names) for anatomy, names in sorted(findings.items()) if names},
            tuple(sorted(name for name in _names_of_catalog() if not set(tokens(name)) <= words)),
            tuple(sorted(words)),
            {task: _spread_examples(list(asked)) for task, asked in questions.items()},
        )

    @classmethod
    def read(cls, *folders: Path) -> Scope | None:
        """Read the scope from the first folder that has it; None without any: then every question is answered."""
        found = next((folder / SCOPE for folder in folders if (folder / SCOPE).is_file()), None)
        if found is None:
            return None
        stored = read_json(found)
        lists: dict[str, Any] = {name: tuple(stored[name]) for name in ("tasks", "anatomies", "sequences", "elsewhere", "words")}
        return cls(**lists, **{name: stored[name] for name in ("structures", "findings", "examples")})

    def write(self, folder: Path) -> None:
        """Write the scope to a folder."""
        write_json(folder / SCOPE, asdict(self))

    @property
    def structure_names(self) -> tuple[str, ...]:
        """Names of all structures, sorted."""
        return tuple(sorted({name for names in self.structures.values() for name in names}))

    @property
    def finding_names(self) -> tuple[str, ...]:
        """Names of all findings, sorted."""
        return tuple(sorted({name for names in self.findings.values() for name in names}))

    @property
    def summary(self) -> str:
        """A sentence that states what can be asked."""
        parts = {
            "anatomy": self.anatomies,
            "sequences": self.sequences,
            "structures": self.structure_names,
            "findings": self.finding_names,
        }
        stated = "; ".join(f"{name}: {', '.join(values)}" for name, values in parts.items() if values)
        return f"ask for {', '.join(self.tasks)}; {stated}"

    @property
    def example(self) -> str | None:
        """A question of the training data that fits images of as many anatomies as possible; None without any question."""

        def fits(question: str) -> int:
            return sum(not self._foreign_terms(question, anatomy) for anatomy in self.anatomies)

        return max((question for questions in self.examples.values() for question in questions), key=fits, default=None)

    def require_question(self, instruction: str) -> None:
        """Check that a question is within the scope.

        Raises:
            OutOfScope: it is not; the remedy states what can be asked.
        """
        if reason := self._reason(instruction):
            raise OutOfScope(reason, where="instruction", remedy=self.summary)
        words = tokens(instruction)
        stated = [anatomy for anatomy in self.anatomies if set(tokens(anatomy)) <= set(words)]
        self.require_shown(instruction, stated[0] if len(stated) == 1 else None, "the question says so")

    def in_trained_spelling(self, instruction: str) -> str:
        """Return a question with the words of names as the training data spells them: "gray" as "grey", or the other way round."""
        return re.sub(r"[^\W\d_]+", lambda word: self._trained_spelling(word.group()), instruction)

    def _trained_spelling(self, word: str) -> str:
        lowered = word.lower()
        for ending in ("", "s"):
            if lowered.endswith(ending) and (trained := self._spellings.get(respell(stem := lowered.removesuffix(ending)))):
                return word if stem in trained else f"{min(trained)}{ending}"
        return word

    def restate(self, instruction: str) -> str | None:
        """Return the trained question that stands for one about findings in other words; None = it is asked as it is.

        "Is this brain normal?" becomes "Does this image suggest a lesion?": the network was trained on no other word for findings
        of any kind. So does "Can you rule out a lesion?": yes or no must not depend on the wording, nor mean the contrary. A
        question about several names, about more than whether a finding is there, or for a report or an image, is asked as it is.
        """
        words = tokens(instruction)
        spans = {words[one] for one in longest_terms(words, self._terms)}
        asked = [task for task in asked_tasks(instruction) if task.name in self.tasks]
        if not all(map(_names_object, asked)):
            return None
        name = self._one_finding(words, spans) if spans & self._names else self._any_finding(words, spans)
        is_one_diagnosis = [task.answers_yes_or_no for task in asked] == [True]
        if name is None or (spans & self._names and (not is_one_diagnosis or _is_wording(instruction, asked[0], name))):
            return None
        asked.sort(key=lambda task: task.answers_yes_or_no, reverse=split_words(instruction)[0].lower() in _YES_OR_NO)
        usable = {"finding": bool(self.finding_names), "structure": name in self.structure_names}
        for task in asked:
            for text in task.phrasings.trained:
                if (placeholders := _PLACEHOLDER.findall(text)) and all(usable.get(one) for one in placeholders):
                    return text.format_map(dict.fromkeys(placeholders, name))
        return None

    def _one_finding(self, words: Term, spans: set[Term]) -> str | None:
        """Return the finding that a question names, if it asks no more than whether there is one."""
        findings = {tokens(name): name for name in (ANY, *self.finding_names)}
        named = spans & self._names
        term = next(iter(named))
        before = {words[index - 1] for index in range(1, len(words)) if words[index : index + len(term)] == term}
        asks_more = "the" in before or not _OTHER_QUESTIONS.isdisjoint(words) or spans & _GENERIC_TERMS - named
        return None if len(named) > 1 or asks_more else findings.get(term)

    def _any_finding(self, words: Term, spans: set[Term]) -> str | None:
        """Return the name that stands for findings of any kind, of the anatomy that a question names; None if it asks for none."""
        stated = [anatomy for anatomy in self.anatomies if set(tokens(anatomy)) <= set(words)]
        names = tuple(self.findings.get(stated[0], ())) if len(stated) == 1 else self.finding_names
        if not spans & _GENERIC_TERMS:
            return None
        return ANY if ANY in names else names[0] if len(names) == 1 else None

    def require_anatomy(self, stated: str | None) -> None:
        """Check the anatomy that the header of an image states, or the region that it is in; None = it states none.

        Raises:
            OutOfScope: the model was trained on no such anatomy.
        """
        if any(is_within(anatomy, stated or "") for anatomy in self.anatomies):
            return
        words = tokens(stated or "")
        named = [self._terms[words[one]] for one in longest_terms(words, self._terms)]
        if named and not any(named):
            reason = f"this version was not trained on images of this anatomy: {stated}"
            raise OutOfScope(reason, where="image", remedy=self.summary)

    def trained_anatomy(self, stated: str | None) -> str | None:
        """Return the anatomy of the training images that a header states; None if it states none of them."""
        words = set(tokens(stated or ""))
        found = [
            anatomy
            for anatomy in self.anatomies
            if words & {normalize(word) for word in BODY.get(anatomy, (anatomy,))} or is_within(anatomy, stated or "")
        ]
        return found[0] if len(found) == 1 else None

    def require_shown(self, instruction: str, anatomy: str | None, because: str) -> None:
        """Check that what a question names was asked for in training images of an anatomy: no meniscus in a brain.

        Args:
            anatomy: one of :attr:`anatomies`; None = not known, and nothing is refused.
            because: how the anatomy is known, in words.

        Raises:
            OutOfScope: a structure, finding or anatomy of the question belongs to images of other anatomies only.
        """
        if anatomy is None:
            return
        if foreign := self._foreign_terms(instruction, anatomy):
            known = sorted({*self.structures.get(anatomy, ()), *self.findings.get(anatomy, ())})
            reason = f"{', '.join(dict.fromkeys(foreign))}: in no training image of the {anatomy}, which this is ({because})"
            raise OutOfScope(reason, where="instruction", remedy=f"ask for {', '.join(known)}" if known else self.summary)

    def _foreign_terms(self, instruction: str, anatomy: str) -> list[str]:
        """Return the structures, findings and anatomies of a question that belong to images of other anatomies only."""
        words, written = tokens(instruction), split_words(instruction)
        return [
            " ".join(written[one])
            for one in longest_terms(words, self._terms)
            if (owners := self._owners.get(words[one])) and anatomy not in owners
        ]

    def _reason(self, instruction: str) -> str:
        """Return why a question is out of scope; "" if it is not."""
        words, written = tokens(instruction), split_words(instruction)
        spans = list(longest_terms(words, self._terms))
        outside = [" ".join(written[one]) for one in spans if not self._terms[words[one]]] + self._unknown_conjuncts(
            words, written, spans
        )
        if outside:
            return f"this version was not trained on: {', '.join(dict.fromkeys(outside))}"
        asked = asked_tasks(instruction)
        if not asked:
            return "no task is recognized in this question"
        trained = [task for task in asked if task.name in self.tasks]
        if not trained:
            return f"this version was not trained for {' or '.join(task.name for task in asked)}"
        if not all(_names_object(task) for task in trained):
            return self._reason_of_words(words, written, spans)
        if not any(words[one] in self._objects for one in spans):
            return f"no structure or finding that this version was trained on is named ({', '.join(task.name for task in trained)})"
        return ""

    def _unknown_conjuncts(self, words: Term, written: list[str], spans: list[slice]) -> list[str]:
        """Return the unknown words that follow a known name and "and": "the white matter and the claustrum"."""
        named = {index for one in spans for index in range(one.start, one.stop)}
        ends = {one.stop for one in spans}
        unknown = []
        for index, word in enumerate(words):
            if word not in _AND or index not in ends:
                continue
            following = next((i for i in range(index + 1, len(words)) if words[i] not in STOP), None)
            if following is not None and following not in named and not self._is_known(words[following]):
                unknown.append(written[following])
        return unknown

    def _reason_of_words(self, words: Term, written: list[str], spans: list[slice]) -> str:
        """Return why a question without an object is not about the image: most of its words are those of no instruction."""
        named = {index for one in spans for index in range(one.start, one.stop)}
        content = [index for index, word in enumerate(words) if word not in STOP and index not in named]
        unknown = [written[index] for index in content if not self._is_known(words[index])]
        if unknown and len(unknown) >= len(content) - len(unknown):
            return f"words of this question occur in no training instruction: {', '.join(dict.fromkeys(unknown))}"
        return ""

    def _is_known(self, word: str) -> bool:
        """Return whether a word, or a longer form of it, occurs in training instructions or in questions of a task."""
        return word in self._words or any(word.startswith(known) for known in self._words if len(known) > 4)

    @cached_property
    def _words(self) -> frozenset[str]:
        cues = (word for task in TASKS.values() for cue in _cues(task) for word in tokens(cue))
        return frozenset({*self.words, *_IMAGE_WORDS, *cues})

    @cached_property
    def _objects(self) -> frozenset[Term]:
        """Names that a question may be about: structures, findings, and words for findings of every kind."""
        return frozenset(map(tokens, (*self.structure_names, *self.finding_names, *(GENERIC if self.findings else ()))))

    @cached_property
    def _names(self) -> frozenset[Term]:
        """Names of structures and findings."""
        return frozenset(map(tokens, (*self.structure_names, *self.finding_names)))

    @cached_property
    def _spellings(self) -> dict[str, set[str]]:
        """Each word of a name in one spelling -> as the training data spells it."""
        found: dict[str, set[str]] = defaultdict(set)
        for name in (*self.structure_names, *self.finding_names, *self.anatomies):
            for word in split_words(name.lower()):
                found[respell(word)].add(word)
        return dict(found)

    @cached_property
    def _owners(self) -> dict[Term, frozenset[str]]:
        """Name of a structure, a finding or an anatomy -> anatomies of the training images that it belongs to.

        Words for findings of every kind belong to all, and so does what was asked for in images of an unknown anatomy.
        """
        found: dict[Term, set[str]] = {tokens(anatomy): {anatomy} for anatomy in self.anatomies}
        for names in (self.structures, self.findings):
            for anatomy, terms in names.items():
                for name in terms:
                    found.setdefault(tokens(name), set()).add(anatomy)
        general = set(map(tokens, GENERIC))
        return {term: frozenset(owners) for term, owners in found.items() if "" not in owners and term not in general}

    @cached_property
    def _terms(self) -> dict[Term, bool]:
        """Every term that the controlled vocabularies know -> whether it is within the scope."""
        terms = {tokens(name): False for name in self.elsewhere}
        terms |= {tokens(name): False for name in OTHER_MODALITIES}
        if self.anatomies:
            within = {word for anatomy in self.anatomies for word in BODY.get(anatomy, ())}
            body = {word for words in BODY.values() for word in words}
            terms |= {tokens(word): word in within for word in (*OTHER_PARTS, *body)}
        if self.sequences:
            terms |= {tokens(name): canonical in self.sequences for name, canonical in sequence_names().items()}
        for name in (*self.structure_names, *self.finding_names, *self.anatomies, *GENERIC):
            terms[tokens(name)] = True
        return terms


def asked_tasks(instruction: str) -> list[Task]:
    """Return the tasks that the words of a question name, by their cues."""
    words = tokens(instruction)
    return [task for task in TASKS.values() if any(has_cue(words, cue) for cue in _cues(task))]


def answer_beginnings(instruction: str) -> tuple[str, ...]:
    """Return how an answer may begin, if all tasks that the words of a question name say so; empty = in any way.

    A small model that has never read "locate" would answer with a mask: the words leave no doubt that a box is asked for.
    """
    asked = asked_tasks(instruction)
    return tuple(one for task in asked for one in task.beginnings) if all(task.beginnings for task in asked) else ()


def _findings_of(record: InstructionRecord | VolumeInstructionRecord) -> Iterator[str]:
    """Yield the findings that an instruction asks about or that its answer names."""
    yield from (box.label for box in record.boxes)
    if finding := getattr(record, "finding", None):
        yield str(finding)
    if record.positive is not None:
        for pattern in (r"^no, no (.+)$", r"Most likely: (.+)\.$", r"^yes, ([^,.]+)$"):
            if found := re.search(pattern, record.response):
                yield found.group(1)
                return


def _names_of_catalog() -> set[str]:
    """Return the names of structures and findings that the cards and the tables of public datasets use, and their last words."""
    from components.catalog import list_cards

    names = {name.lower() for card in list_cards() for value, name in card.label_map.items() if value} | FINDINGS
    heads = {name.split()[-1] for name in names}
    return names | {head for head in heads if len(head) > 4 and head not in STOP}


def _spread_examples(questions: list[str]) -> list[str]:
    """Return :data:`EXAMPLES` questions, the shortest first, of as many lengths as possible."""
    ordered = sorted(questions, key=lambda text: (len(text), text))
    return ordered if len(ordered) <= EXAMPLES else [ordered[(len(ordered) - 1) * i // (EXAMPLES - 1)] for i in range(EXAMPLES)]


def _cues(task: Task) -> tuple[str, ...]:
    """Return the cues of a task; of one that declares none, every word of its wordings."""
    texts = [text for phrasings in task.all_phrasings for text in (*phrasings.trained, *phrasings.held_out)]
    return task.cues or tuple(
        sorted({word for text in texts for word in tokens(re.sub(r"{.*?}", "", text))} - STOP - set(IMAGE_WORDS))
    )


def _names_object(task: Task) -> bool:
    """Return whether every question of a task names a structure or a finding."""
    texts = [text for phrasings in task.all_phrasings for text in phrasings.trained]
    return all("{structure}" in text or "{finding}" in text for text in texts)


def _is_wording(instruction: str, task: Task, name: str) -> bool:
    """Return whether an instruction about a finding is in a wording of the task's training data or of its evaluation."""
    values = {"finding": re.escape(name), "scan": r"(?:[\w.-]+ )*(?:MRI|image|scan)"}
    texts = [text for phrasings in task.all_phrasings for text in (*phrasings.trained, *phrasings.held_out)]
    for text in texts:
        parts = _PLACEHOLDER.split(text)  # text and names of placeholders in turn
        pattern = "".join(values.get(part, ".+") if index % 2 else re.escape(part) for index, part in enumerate(parts))
        if re.fullmatch(pattern, instruction):
            return True
    return False
