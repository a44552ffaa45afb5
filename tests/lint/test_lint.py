#!/usr/bin/env python3
"""The lint finds what is planted and nothing else: each rule has a violation here, beside what looks like one."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from lint import Lint, split_layers  # noqa: E402

# A tree that obeys every rule; each test adds to it.
CLEAN = {
    "base/err.h": "struct err { int code; };\n",
    "base/log.c": "#include <stdlib.h>\nconst char *stream(void) { return getenv(\"JOURNAL_STREAM\"); }\n",
    "base/check.c": "#include <stdio.h>\n#include <stdlib.h>\nvoid f(void) { fprintf(stderr, \"x\"); abort(); }\n",
    "base/metric_rows.h": "METRIC(METRIC_COUNTER, reads_total, \"Reads.\")\n",
    "conf/options.h": "CONF_INT(cpu_threads, \"cpu\", \"threads\", 0, 0, 9, CONF_LIVE, \"Threads.\")\n",
    "tiering/index.h": "#include \"base/err.h\"\n",
    "tiering/index.c": "#include \"tiering/index.h\"\n#include <liburing.h>\nint index_x(void);\n",
    "gpu/device.h": "#include \"base/err.h\"\n",
    "daemon/engine.c": "#include \"tiering/index.h\"\n#include \"gpu/device.h\"\n"
                       "int f(struct conf *c) { log_info(\"x\"); return c->cpu_threads + METRIC_ID_reads_total; }\n",
    "daemon/main.c": "#include <stdio.h>\nint main(void) { printf(\"%d\", f()); exit(1); }\n",
    "README.md": "# engramd\n",
}


class Planted(unittest.TestCase):
    def lint(self, files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**CLEAN, **files}.items():
                path = pathlib.Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(text, bytes):
                    path.write_bytes(text)
                else:
                    path.write_text(text)
            return Lint(folder).run()

    def finds(self, files, *wanted):
        """The violations are exactly these, given by how their lines begin."""
        found = self.lint(files).found
        for line, begin in zip(found, wanted):
            self.assertTrue(line.startswith(begin), f"{line!r} does not begin with {begin!r}")
        self.assertEqual(len(found), len(wanted), found)

    def accepts(self, files):
        self.assertEqual(self.lint(files).found, [])

    def test_a_clean_tree_passes(self):
        self.accepts({})

    def test_siblings_do_not_include_each_other(self):
        self.finds({"gpu/a.c": '#include "base/err.h"\n#include "tiering/index.h"\n'}, "gpu/a.c:2: arrow:")
        self.finds({"tiering/a.c": '#include "gpu/device.h"\n'}, "tiering/a.c:1: arrow:")
        self.finds({"conf/a.c": ' #  include "tiering/index.h"\n'}, "conf/a.c:1: arrow:")

    def test_base_includes_nobody_and_no_library_includes_the_daemon(self):
        self.finds({"base/a.c": '#include "tiering/index.h"\n'}, "base/a.c:1: arrow:")
        self.finds({"daemon/a.h": "int a;\n", "gpu/b.c": '#include "daemon/a.h"\n'}, "gpu/b.c:1: arrow:")

    def test_tests_may_include_everything(self):
        self.accepts({"tests/unit/test_a.c": '#include "tiering/index.h"\n#include "gpu/device.h"\n'
                                             "int main(void) { system(\"x\"); abort(); }\n"})

    def test_includes_are_written_from_the_root(self):
        self.finds({"tiering/a.c": '#include "index.h"\n'}, "tiering/a.c:1: arrow:")

    def test_libraries_stay_in_their_folders(self):
        self.finds({"base/a.c": "#include <uv.h>\n"}, "base/a.c:1: header:")
        self.finds({"gpu/a.c": "#include <jansson.h>\n#include <cblas.h>\n"}, "gpu/a.c:1: header:")
        self.finds({"proto/a.c": "#include <unistd.h>\n#include <string.h>\n"}, "proto/a.c:1: header:")

    def test_refused_calls_are_found(self):
        for call in ("strcpy(a, b)", "sprintf(a, b)", "gets(a)", "atoi (a)", "strtok(a, b)", "rand()", "system(a)",
                     "alloca(3)", "strcat(a, b)", "assert(a)", "exit(1)", "abort()", "_exit(1)", 'getenv("A")',
                     'printf("x")', 'puts("x")', 'log_warning("x")', 'log_error ("x")', 'fprintf(stderr, "x")',
                     "fputs(a, stdout)"):
            self.finds({"tiering/a.c": f"void f(void)\n{{\n    {call};\n}}\n"}, "tiering/a.c:3: call:")

    def test_names_that_only_resemble_them_are_not(self):
        self.accepts({"tiering/a.c": "int x = my_system(1) + uv_exit(2) + ops->abort(3) + ops.exit(4) + snprintf(a, b, c)"
                                     " + operand(1) + buf_printf(a, b) + static_assert(1);\n"
                                     "int catalog_info(int a);\n"})

    def test_comments_and_strings_are_no_code(self):
        self.accepts({"tiering/a.c": '/* abort() and // and system("x") */\n'
                                     'const char *s = "exit(1); // \\" abort() /*"; /* " */\n'
                                     "char c = '\"', d = '\\'', *e = \"http://x\";\n"
                                     "int f(int a) { return a / *&a; }\n"})

    def test_who_may_end_the_process_read_the_environment_or_print(self):
        self.finds({"daemon/a.c": "void f(void) { abort(); }\n"}, "daemon/a.c:1: call:")
        self.finds({"daemon/a.c": "void f(void) { printf(\"x\"); }\n"}, "daemon/a.c:1: call:")
        self.accepts({"daemon/a.c": 'void f(void) { getenv("A"); log_info("x"); }\n'})
        self.accepts({"tools/a.c": 'int main(void) { getenv("A"); printf("x"); exit(1); }\n'})

    def test_files_are_not_mapped(self):
        self.finds({"tiering/a.c": "void *p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);\n"}, "tiering/a.c:1: mmap:")
        self.finds({"gpu/a.c": "void *p = mmap(NULL, n,\n PROT_READ, MAP_PRIVATE, fd, 0); int MAP_ANONYMOUS;\n"},
                   "gpu/a.c:1: mmap:")
        self.accepts({"tiering/a.c": "void *p = mmap(NULL, n, PROT_READ,\n    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n"})

    def test_line_comments_are_found(self):
        self.finds({"gpu/a.c": "int a; // why\n"}, "gpu/a.c:1: comment:")
        self.finds({"tests/unit/test_a.c": "int a;\n// why\n"}, "tests/unit/test_a.c:2: comment:")
        self.finds({"gpu/a.cu": "int a; // why\n"}, "gpu/a.cu:1: comment:")

    def test_long_files_are_found_and_longish_ones_named(self):
        self.finds({"gpu/a.c": "int a;\n" * 1001}, "gpu/a.c:1001: length:")
        self.finds({"tests/serve/run_a.py": "a = 1\n" * 1001}, "tests/serve/run_a.py:1001: length:")
        warned = self.lint({"gpu/a.c": "int a;\n" * 1000})
        self.assertEqual(warned.found, [])
        self.assertEqual(len(warned.warnings), 1)
        self.assertEqual(self.lint({"gpu/a.c": "int a;\n" * 400}).warnings, [])

    def test_two_files_of_one_name_are_found(self):
        self.finds({"gpu/index.c": "int a;\n"}, "tiering/index.c:1: name: gpu/index.c")
        self.accepts({"gpu/README.md": "x\n", "tiering/README.md": "x\n", "gpu/meson.build": "x\n",
                      "tiering/meson.build": "x\n"})

    def test_promises_are_found(self):
        for word in ("TO" "DO", "FIX" "ME", "XX" "X"):
            self.finds({"gpu/a.c": f"int a; /* {word} later */\n"}, "gpu/a.c:1: todo:")
            self.finds({"docs/a.md": f"\n{word}: later\n"}, "docs/a.md:2: todo:")
        self.accepts({"gpu/a.c": "int TO" "DOS, XX" "XX;\n"})

    def test_rows_nobody_uses_are_found(self):
        dead_option = CLEAN["conf/options.h"] + 'CONF_TEXT(log_file, "log", "file", "", CONF_ANY, CONF_LIVE, "A.")\n'
        self.finds({"conf/options.h": dead_option}, "conf/options.h:2: option: no code uses log_file")
        self.finds({"conf/options.h": dead_option, "conf/a.c": "int f(struct conf *c) { return c->log_file; }\n",
                    "tests/unit/test_a.c": "int f(struct conf *c) { return c->log_file; }\n",
                    "daemon/b.c": "/* c->log_file */ const char *s = \"->log_file\"; int a = c->log_file_x;\n"},
                   "conf/options.h:2: option:")
        self.accepts({"conf/options.h": dead_option, "daemon/a.c": "int f(struct conf *c) { return c->log_file; }\n"})
        dead_metric = CLEAN["base/metric_rows.h"] + 'METRIC(METRIC_GAUGE, depth, "A.")\n'
        self.finds({"base/metric_rows.h": dead_metric}, "base/metric_rows.h:2: metric: no code uses depth")
        self.accepts({"base/metric_rows.h": dead_metric, "daemon/a.c": "int a = METRIC_ID_depth;\n"})

    def test_bytes_that_are_no_text_are_found(self):
        self.finds({"gpu/a.c": b"int a; /* \xff */\n"}, "gpu/a.c:1: encoding:")
        self.finds({"gpu/a.c": "int a;\n\tint b;\n"}, "gpu/a.c:2: encoding:")
        self.finds({"gpu/a.c": "int a; \n"}, "gpu/a.c:1: encoding:")
        self.finds({"docs/a.md": "a\r\n"}, "docs/a.md:1: encoding:")

    def test_build_folders_are_not_looked_at(self):
        self.accepts({"build/a.c": "int a; // x\n", "build-asan/a.c": "int a; // x\n"})

    def test_layers_have_the_shape_of_the_text(self):
        text = 'int a; /* x\ny */ char *s = "a\\\nb"; // z\nint b; \'\n'
        code, comments, lines = split_layers(text)
        for layer in (code, comments):
            self.assertEqual(len(layer), len(text))
            self.assertEqual([i for i, c in enumerate(layer) if c == "\n"],
                             [i for i, c in enumerate(text) if c == "\n"])
        self.assertEqual(len(lines), 1)

    def test_the_exit_status_says_whether_something_was_found(self):
        lint = pathlib.Path(__file__).resolve().parent / "lint.py"
        with tempfile.TemporaryDirectory() as folder:
            empty = subprocess.run([sys.executable, lint, folder], capture_output=True, check=False)
            self.assertEqual(empty.returncode, 1, "nothing looked at must not pass")
            pathlib.Path(folder, "gpu").mkdir()
            pathlib.Path(folder, "gpu", "a.c").write_text("int a;\n")
            clean = subprocess.run([sys.executable, lint, folder], capture_output=True, check=False)
            self.assertEqual(clean.returncode, 0)
            pathlib.Path(folder, "gpu", "a.c").write_text("int a; // x\n")
            dirty = subprocess.run([sys.executable, lint, folder], capture_output=True, text=True, check=False)
            self.assertEqual(dirty.returncode, 1)
            self.assertIn("gpu/a.c:1: comment:", dirty.stdout)


if __name__ == "__main__":
    unittest.main()
