"""bindings/generate.py: the declarations are fresh, and what it does not know is an error."""

import importlib.util
import subprocess
import sys
import unittest

from support import ROOT

SCRIPT = ROOT / "bindings" / "generate.py"


def load():
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


class TestGenerate(unittest.TestCase):
    def test_declarations_are_fresh(self):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_declarators(self):
        generate = load()
        header = generate.parse(
            "typedef int32_t lowbit_a_t;\n"
            "typedef void (*lowbit_f_t)(void *user, void (*body)(void *, int64_t i));\n"
            "typedef struct lowbit_h_t lowbit_h_t;\n"
            "typedef struct lowbit_s_t {\n"
            "  size_t struct_size;\n"
            "  const char *const *names;\n"
            "} lowbit_s_t;\n"
            "#define LOWBIT_A_ONE 1\n"
            "lowbit_a_t lowbit_go(const struct lowbit_h_t *h, lowbit_h_t **out, float x);\n"
        )
        python, julia = generate.python(header), generate.julia(header)
        self.assertIn("CFUNCTYPE(None, c_void_p, CFUNCTYPE(None, c_void_p, c_int64))", python)
        self.assertIn('("names", POINTER(c_char_p))', python)
        self.assertIn("POINTER(POINTER(lowbit_h_t)), c_float", python)
        self.assertIn("const LOWBIT_A_ONE = Int32(1)", julia)
        self.assertIn("(Ptr{lowbit_h_t}, Ptr{Ptr{lowbit_h_t}}, Cfloat)", julia)

    def test_unknown_constructs_are_errors(self):
        generate = load()
        for text in (
            "enum lowbit_e { A, B };",
            "typedef union { int32_t a; } lowbit_u_t;",
            "#define LOWBIT_X(a) ((a) + 1)",
            "#if LOWBIT_X\n#endif",
            "int64_t lowbit_list[4];",
            "extern int32_t lowbit_global;",
            "typedef int64_t lowbit_a_t; typedef int64_t lowbit_a_t;",
            "#define LOWBIT_B_INIT { sizeof(lowbit_b_t), 0 }",
        ):
            with self.subTest(text=text), self.assertRaises(generate.Unknown):
                generate.parse(text)
        header = generate.parse("long lowbit_go(void);")
        with self.assertRaisesRegex(generate.Unknown, "type long"):
            generate.python(header)


if __name__ == "__main__":
    unittest.main()
