#!/usr/bin/env python3
"""The rules of the tree that a compiler does not check.

  lint.py [ROOT]    prints "file:line: rule: what", one line per violation; exit status 1 when there is one.
                    Lines that begin with "warning:" are advice and do not count.

Rules: arrow (who may include whom), header (which system and library headers a folder may use), call (functions
that are refused), mmap, comment, length, name, todo, option and metric (rows no code uses), encoding.
Its own test is test_lint.py, which plants a violation of each.
"""
import pathlib
import re
import sys

ALL_PARTS = ("base", "conf", "proto", "model", "tiering", "gpu", "daemon", "tools")
# Siblings never include each other; what two of them share is in base/. (docs: architecture)
MAY_INCLUDE = {
    "base": {"base"},
    "conf": {"base", "conf"},
    "proto": {"base", "proto"},
    "model": {"base", "model"},
    "tiering": {"base", "tiering"},
    "gpu": {"base", "gpu"},
    "daemon": set(ALL_PARTS) - {"tools"},
    "tools": set(ALL_PARTS),
}
# Headers of libraries, and the folders that own the use of each. base/ uses the C library only.
LIBRARY = {
    "uv.h": {"daemon", "tools"},
    "liburing.h": {"tiering"},
    "xxhash.h": {"tiering", "model", "tools"},
    "jansson.h": {"proto", "model", "daemon", "tools"},
    "ini.h": {"conf"},
    "pcre2.h": {"model"},
    "utf8proc.h": {"model"},
    "llhttp.h": {"proto"},
    "cblas.h": {"gpu"},
}
# proto/ turns bytes into structs and back: no I/O, thread or clock.
PROTO_REFUSED = {"pthread.h", "threads.h", "unistd.h", "fcntl.h", "time.h", "sys/socket.h", "sys/time.h",
                 "poll.h", "sys/epoll.h", "base/clock.h", "base/mailbox.h", "base/pool.h", "base/flag.h"}

CALLS = {
    "strcpy": "memcpy or snprintf", "strcat": "buf_text or snprintf", "sprintf": "snprintf",
    "vsprintf": "vsnprintf", "gets": "fgets", "atoi": "strtol with its checks", "atol": "strtol with its checks",
    "atoll": "strtoll with its checks", "atof": "strtod with its checks", "strtok": "strcspn", "rand": "a seeded generator",
    "srand": "a seeded generator", "random": "a seeded generator", "drand48": "a seeded generator",
    "system": "nothing: no shell", "popen": "nothing: no shell", "alloca": "an arena", "tmpnam": "mkstemp",
    "mktemp": "mkstemp", "localtime": "gmtime_r", "gmtime": "gmtime_r", "ctime": "strftime", "asctime": "strftime",
    "longjmp": "an error code", "setjmp": "an error code", "assert": "ASSERT, which is always on",
}
ENDINGS = {"exit", "_exit", "_Exit", "abort", "quick_exit"}
MAY_END = {"daemon/main.c", "base/check.c"}  # and tools/
MAY_GETENV = {"base/log.c"}                  # JOURNAL_STREAM; and daemon/, tools/
MAY_PRINT = {"base/check.c"}                 # and daemon/main.c, tools/
LOG_CALL = re.compile(r"\blog_(?:error|warning|info|debug|line)\s*\(")

MOST_LINES, MANY_LINES, MOST_COLUMNS = 1000, 400, 100
ROW_TABLES = {"conf/options.h", "base/metric_rows.h"}  # one row, one line
CODE = {".c", ".h", ".cu", ".cuh"}
SCRIPTS = {".py", ".sh"}
SKIPPED_FOLDERS = {".git", "corpus", "node_modules", "__pycache__", "demo"}
FREE_NAMES = {"README.md", "meson.build", "__init__.py", ".gitignore"}
WORDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")  # split: this file is looked at, too


class Source:
    """A file in three layers of the same shape: its text, its code without comments and with empty strings, and its
    comments. Positions agree, so a line number found in one is right in all."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.part = path.split("/")[0]
        self.lines = text.split("\n")
        self.code, self.comments, self.line_comments = split_layers(text)

    def line_of(self, position):
        return self.text.count("\n", 0, position) + 1


def split_layers(text):
    """(code, comments, positions of // comments)"""
    code, comments, line_comments = [], [], []
    state, i = "code", 0
    while i < len(text):
        two, c = text[i:i + 2], text[i]
        blank = "\n" if c == "\n" else " "
        if state == "code":
            if two in ("/*", "//"):
                state = "block" if two == "/*" else "line"
                if state == "line":
                    line_comments.append(i)
                code += "  "
                comments += two
                i += 2
                continue
            if c in "\"'":
                state = c
            code.append(c)
            comments.append(blank)
        elif state in ("block", "line"):
            if state == "block" and two == "*/":
                state = "code"
                code += "  "
                comments += two
                i += 2
                continue
            if state == "line" and c == "\n":
                state = "code"
            code.append(blank)
            comments.append(c)
        else:  # inside a string or a character, which code keeps only the quotes of
            if c == "\\":
                code += [" ", "\n" if text[i + 1:i + 2] == "\n" else " "]
                comments += code[-2:]
                i += 2
                continue
            if c == state or c == "\n":
                code.append(c)
                state = "code"
            else:
                code.append(" ")
            comments.append(blank)
        i += 1
    return "".join(code), "".join(comments), line_comments


class Lint:
    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.found, self.warnings = [], []
        self.sources = []

    def violation(self, path, line, rule, what):
        self.found.append(f"{path}:{line}: {rule}: {what}")

    def warning(self, path, line, what):
        self.warnings.append(f"warning: {path}:{line}: {what}")

    def files(self):
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root)
            if not path.is_file() or any(part in SKIPPED_FOLDERS or part.startswith("build")
                                         for part in relative.parts[:-1]):
                continue
            yield path, str(relative)

    def run(self):
        by_name = {}
        for path, name in self.files():
            if path.suffix in CODE | SCRIPTS and path.name not in FREE_NAMES:
                by_name.setdefault(path.name, []).append(name)
            if path.suffix in CODE | SCRIPTS | {".md", ".build", ".conf", ".service"} or path.name == "bootstrap":
                self.check_text(path, name)
        for same in by_name.values():
            for name in same[1:]:
                self.violation(name, 1, "name", f"{same[0]} has the same name")
        for source in self.sources:
            self.check_includes(source)
            self.check_calls(source)
            self.check_comments(source)
        self.check_rows("conf/options.h", r"^CONF_[A-Z]+\((\w+),", r"(?:->|\.)\s*{}\b", "conf/", "option")
        self.check_rows("base/metric_rows.h", r"^METRIC\(\w+, (\w+),", r"\bMETRIC_ID_{}\b", "base/", "metric")
        return self

    def check_text(self, path, name):
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            self.violation(name, 1, "encoding", f"not UTF-8: {error.reason} at byte {error.start}")
            return
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if WORDS.search(line):
                self.violation(name, number, "todo", f"'{WORDS.search(line)[1]}' does not go on main")
            if line.endswith((" ", "\t", "\r")):
                self.violation(name, number, "encoding", "space at the end of the line")
        if path.suffix in CODE:
            if "\t" in text:
                self.violation(name, text.count("\n", 0, text.index("\t")) + 1, "encoding", "a tab")
            wide = [number for number, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS]
            if wide and name not in ROW_TABLES:
                self.warning(name, wide[0], f"{len(wide)} lines of more than {MOST_COLUMNS} columns")
            self.sources.append(Source(name, text))
        if path.suffix in CODE | SCRIPTS:
            n = len(lines) - 1
            if n > MOST_LINES:
                self.violation(name, n, "length", f"{n} lines; more than {MOST_LINES} must be split")
            elif n > MANY_LINES:
                self.warning(name, n, f"{n} lines; 150 to {MANY_LINES} is the aim")

    def check_includes(self, source):
        for number, line in enumerate(source.lines, 1):
            found = re.match(r'\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', line)
            if not found:
                continue
            own, system = found.groups()
            header = own or system
            if source.part == "proto" and header in PROTO_REFUSED:
                self.violation(source.path, number, "header", f"proto/ has no I/O, thread or clock: {header}")
            if system in LIBRARY and source.part in ALL_PARTS and source.part not in LIBRARY[system]:
                self.violation(source.path, number, "header",
                               f"<{system}> belongs to {', '.join(sorted(LIBRARY[system]))}")
            if not own:
                continue
            if not (self.root / own).exists():
                self.violation(source.path, number, "arrow", f'"{own}" is not a path from the root of the tree')
            elif source.part in MAY_INCLUDE and own.split("/")[0] not in MAY_INCLUDE[source.part]:
                self.violation(source.path, number, "arrow", f"{source.part}/ may not include {own}")

    def check_calls(self, source):
        if source.part not in ALL_PARTS:
            return
        is_tool, is_daemon = source.part == "tools", source.part == "daemon"
        for found in re.finditer(r"(?<![\w.])(?<!->)(\w+)\s*\(", source.code):
            name, line = found[1], source.line_of(found.start())
            if name in CALLS:
                self.violation(source.path, line, "call", f"{name}: use {CALLS[name]}")
            elif name in ENDINGS and source.path not in MAY_END and not is_tool:
                self.violation(source.path, line, "call", f"{name}: only main.c and check.c end the process")
            elif name in ("getenv", "secure_getenv", "setenv", "putenv") and source.path not in MAY_GETENV \
                    and not (is_tool or is_daemon):
                self.violation(source.path, line, "call", f"{name}: knobs are options; only daemon/ reads the environment")
            elif name in ("printf", "vprintf", "puts", "putchar", "perror") and source.path != "daemon/main.c" \
                    and source.path not in MAY_PRINT and not is_tool:
                self.violation(source.path, line, "call", f"{name}: a library does not print")
            elif name in ("mmap", "mmap64") and source.part in ("tiering", "gpu", "model") \
                    and "MAP_ANONYMOUS" not in source.code[found.start():found.start() + 300].split(";")[0]:
                self.violation(source.path, line, "mmap", "files are read, never mapped")
        if not (is_tool or is_daemon or source.path in ("base/log.c", "base/log.h")):
            for found in LOG_CALL.finditer(source.code):
                self.violation(source.path, source.line_of(found.start()), "call",
                               "only daemon/ and tools/ log; a library returns a struct err")
        if not (is_tool or source.path == "daemon/main.c" or source.path in MAY_PRINT):
            for found in re.finditer(r"\b(stdout|stderr)\b", source.code):
                self.violation(source.path, source.line_of(found.start()), "call", f"{found[1]}: a library does not print")

    def check_comments(self, source):
        for position in source.line_comments:
            self.violation(source.path, source.line_of(position), "comment", "// is written /* */ here")

    def check_rows(self, table, row, use, own_folder, kind):
        """Every row of a table is used by code outside the folder that owns the table, tests apart."""
        rows = next((source for source in self.sources if source.path == table), None)
        if rows is None:
            return
        code = "\n".join(source.code for source in self.sources
                         if source.part in ALL_PARTS and not source.path.startswith(own_folder))
        for number, line in enumerate(rows.lines, 1):
            found = re.match(row, line)
            if found and not re.search(use.format(found[1]), code):
                self.violation(table, number, kind, f"no code uses {found[1]}")


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
    lint = Lint(root).run()
    for line in lint.warnings + lint.found:
        print(line)
    print(f"{len(lint.sources)} sources, {len(lint.found)} violations, {len(lint.warnings)} warnings")
    if not lint.sources:
        return 1
    return 1 if lint.found else 0


if __name__ == "__main__":
    sys.exit(main())
