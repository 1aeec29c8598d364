"""Pages of the site that are generated: commands and settings from the code, and the documents at the root of the repository.

Links from a page to files outside of ``docs/`` become links to the generated page, or plain text for source files.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

DOCUMENTS = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/results/README.md",
}
"""Page of the site -> document of the repository."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {page: (REPOSITORY / document).read_text() for page, document in DOCUMENTS.items()}
    pages |= {"settings.md": settings_page(), "commands.md": commands_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Resolve links to files outside of the documentation folder."""
    source = DOCUMENTS.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = (REPOSITORY / source).parent

    def resolved(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if not target or "://" in target:
            return match.group(0)
        path = (folder / target).resolve().relative_to(REPOSITORY).as_posix()
        if path.startswith("docs/"):
            return f"{image}[{text}]({path.removeprefix('docs/')}{anchor or ''})"
        generated = {document: name for name, document in DOCUMENTS.items()}.get(path)
        return f"[{text}]({generated}{anchor or ''})" if generated else text

    return _LINK.sub(resolved, markdown)


def settings_page() -> str:
    """Return the reference of all settings, from their descriptions in ``components/settings/``."""
    from components.settings import Settings

    lines = ["# Settings", "", "Fields of a profile (YAML). On the command line: `--set section.field=value`.", ""]
    lines += _settings_section("", Settings)
    return "\n".join(lines)


def _settings_section(prefix: str, section: type[Any]) -> Iterator[str]:
    from components.settings import StageSettings

    fields, sections, types = [], [], get_type_hints(section)  # without the validators of annotated types
    for name, field in section.model_fields.items():
        nested = next((kind for kind in (types[name], *get_args(types[name])) if hasattr(kind, "model_fields")), None)
        if nested is not None:
            sections.append((f"{prefix}{name}", nested))
        else:
            fields.append((name, field))
    if "__pydantic_extra__" in section.__annotations__:  # settings of a stage, under the stage's name
        sections.append((f"{prefix}<stage>", StageSettings))
    if prefix:
        yield from (f"## `{prefix.rstrip('.')}`", "", inspect.getdoc(section) or "", "")
    if fields:
        yield from ("| field | type | default | meaning |", "|---|---|---|---|")
        for name, field in fields:
            default = "required" if field.is_required() else f"`{field.default}`"
            yield f"| `{name}` | `{_type_name(types[name])}` | {_cell(default)} | {_cell(field.description)} |"
        yield ""
    for name, nested in sections:
        yield from _settings_section(f"{name}.", nested)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(typing|pathlib|components\.settings(\.\w+)?)\.", "", name).replace("|", "or")


def commands_page() -> str:
    """Return the reference of all commands, from their own help."""
    from typer.main import get_command

    from flows.cli.main import app

    return "\n".join(["# Commands", "", *_command("omnimri", get_command(app), 2)])


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    if level > 2 or not hasattr(command, "commands"):
        yield from (f"{'#' * min(level, 4)} `{name}`", "")
    yield from (command.help or "", "")
    if command.epilog:
        example = command.epilog.removeprefix("Example: ").removeprefix("Examples: ")
        yield from ("```bash", example, "```", "")
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    if parameters:
        yield from ("| argument | meaning |", "|---|---|")
        for parameter in parameters:
            words = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
            yield f"| `{words}` | {_cell(getattr(parameter, 'help', ''))} |"
        yield ""
    for inner, nested in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {inner}", nested, level + 1)
