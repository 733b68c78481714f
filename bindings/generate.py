#!/usr/bin/env python3
"""Writes the Python and Julia declarations of the C ABI from include/lowbit.h.

    python3 bindings/generate.py            write them
    python3 bindings/generate.py --check    exit 1 and print a diff if they are stale

The header is what cbindgen makes of src/capi: constants by #define, structs by typedef, functions,
no macros besides the INIT ones. Whatever this script does not understand is an error; nothing is
skipped. Standard library only, so that every test machine can run it.
"""

import difflib
import pathlib
import re
import sys
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = ROOT / "include" / "lowbit.h"


class Unknown(Exception):
    """The header has something that this script does not know how to translate."""


# --- what a header declares ----------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A type by its name; `const` is remembered only where it matters (char)."""

    name: str
    const: bool = False


@dataclass(frozen=True)
class Pointer:
    to: "Name | Pointer | Function"


@dataclass(frozen=True)
class Function:
    returns: "Name | Pointer"
    parameters: tuple  # of (name, type)


@dataclass
class Header:
    constants: dict = field(default_factory=dict)  # name -> int
    inits: dict = field(default_factory=dict)  # name of INIT macro -> list of tokens
    order: list = field(default_factory=list)  # (kind, name), as they are declared
    opaque: list = field(default_factory=list)  # names
    aliases: dict = field(default_factory=dict)  # name -> type
    structs: dict = field(default_factory=dict)  # name -> [(field, type)]
    functions: dict = field(default_factory=dict)  # name -> Function


TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9][0-9.]*(?:e[+-]?[0-9]+)?f?)|(?P<word>[A-Za-z_]\w*)|(?P<mark>[(){};,*|-]))"
)


def tokenize(text):
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise Unknown(f"cannot read: {text[at : at + 60]!r}")
        tokens.append(match.group(match.lastgroup))
        at = match.end()
    return tokens


def preprocess(text, header):
    """Takes out comments and directives; constants and INIT macros go to `header`."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text).replace("\\\n", " ")
    kept, cplusplus, depth = [], 0, 0
    for line in text.split("\n"):
        words = line.split(None, 2)
        if not words or not words[0].startswith("#"):
            if not cplusplus:
                kept.append(line)
            continue
        directive = words[0]
        if directive in ("#ifdef", "#ifndef"):
            depth += 1
            if words[1] == "__cplusplus" and directive == "#ifdef":
                cplusplus = depth
            elif words[1] != "LOWBIT_H":
                raise Unknown(line)
        elif directive == "#endif":
            if cplusplus == depth:
                cplusplus = 0
            depth -= 1
        elif directive == "#define" and len(words) == 3:
            name, value = words[1], words[2].strip()
            if re.fullmatch(r"[0-9]+", value):
                header.constants[name] = int(value)
            elif value.startswith("{") and name.endswith("_INIT"):
                header.inits[name] = tokenize(value)
            else:
                raise Unknown(line)
        elif directive != "#include" and words != ["#define", "LOWBIT_H"]:
            raise Unknown(line)
    return "\n".join(kept)


class Parser:
    """Recursive descent over the subset of C declarations that cbindgen writes."""

    def __init__(self, tokens, header):
        self.tokens, self.at, self.header = tokens, 0, header

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, expected=None):
        token = self.peek()
        if token is None or (expected is not None and token != expected):
            near = " ".join(self.tokens[max(0, self.at - 8) : self.at + 4])
            raise Unknown(f"expected {expected or 'more'}, found {token} near: {near}")
        self.at += 1
        return token

    def declarations(self):
        while self.peek() is not None:
            if self.peek() == "typedef":
                self.take()
                self.typedef()
            else:
                name, declared = self.declaration()
                if not isinstance(declared, Function):
                    raise Unknown(f"{name} is neither a type nor a function")
                self.add("function", name, self.header.functions, declared)
            self.take(";")

    def add(self, kind, name, table, value):
        if name in table:
            raise Unknown(f"{name} is declared twice")
        table[name] = value
        self.header.order.append((kind, name))

    def typedef(self):
        if self.peek() != "struct":
            name, declared = self.declaration()
            return self.add("alias", name, self.header.aliases, declared)
        self.take()
        tag = self.take() if self.peek() != "{" else None
        if self.peek() != "{":
            name = self.take()
            if tag != name:
                raise Unknown(f"struct {tag} is renamed {name}")
            self.header.opaque.append(name)
            return self.header.order.append(("opaque", name))
        self.take("{")
        fields = []
        while self.peek() != "}":
            fields.append(self.declaration())
            self.take(";")
        self.take("}")
        name = self.take()
        if tag not in (None, name):
            raise Unknown(f"struct {tag} is renamed {name}")
        return self.add("struct", name, self.header.structs, fields)

    def declaration(self):
        """`const T *name`, `R name(...)`, `R (*name)(...)`: its name (or None) and its type."""
        const = self.peek() == "const"
        if const:
            self.take()
        if self.peek() == "struct":
            self.take()
        base = self.take()
        if not re.fullmatch(r"[A-Za-z_]\w*", base):
            raise Unknown(f"{base} is no type")
        return self.declarator(Name(base, const))

    def declarator(self, declared):
        while self.peek() == "*":
            self.take()
            if self.peek() == "const":
                self.take()
            declared = Pointer(declared)
        if self.peek() == "(":
            # R (*name)(...)
            self.take("(")
            self.take("*")
            name = self.take()
            self.take(")")
            return name, Pointer(Function(declared, self.parameters()))
        name = None
        if re.fullmatch(r"[A-Za-z_]\w*", self.peek() or ""):
            name = self.take()
        if self.peek() == "(":
            return name, Function(declared, self.parameters())
        return name, declared

    def parameters(self):
        self.take("(")
        if self.tokens[self.at : self.at + 2] == ["void", ")"]:
            self.at += 2
            return ()
        parameters = [self.declaration()]
        while self.peek() == ",":
            self.take()
            parameters.append(self.declaration())
        self.take(")")
        return tuple(parameters)


def parse(text):
    header = Header()
    Parser(tokenize(preprocess(text, header)), header).declarations()
    for macro in header.inits:
        if struct_of(macro) not in header.structs:
            raise Unknown(f"{macro} belongs to no struct")
    return header


def struct_of(macro):
    """LOWBIT_STEP_ARGS_INIT -> lowbit_step_args_t"""
    return macro.removesuffix("_INIT").lower() + "_t"


def alias_of(constant, header):
    """The integer type that a constant belongs to: LOWBIT_DTYPE_F32 -> lowbit_dtype_t, or None."""
    names = [
        name
        for name, declared in header.aliases.items()
        if isinstance(declared, Name) and constant.startswith(name.removesuffix("_t").upper() + "_")
    ]
    return max(names, key=len, default=None)


def defaults(name, header):
    """What the INIT macro of a struct gives its fields: {field: token}, zeros left out."""
    tokens = header.inits.get(name.removesuffix("_t").upper() + "_INIT")
    if tokens is None:
        return None
    # Nested braces (a buffer) are all zero.
    text = re.sub(r"(?<=.)\{ NULL , 0 \}", "0", " ".join(tokens)).strip("{} ")
    values = [value.strip() for value in text.split(" , ")]
    fields = [field for field, _ in header.structs[name]]
    if len(values) != len(fields):
        raise Unknown(
            f"the INIT macro of {name} has {len(values)} values, the struct {len(fields)}"
        )
    if values[0] != f"sizeof ( {name} )":
        raise Unknown(f"the INIT macro of {name} begins with {values[0]}")
    result = {}
    for name, value in zip(fields[1:], values[1:]):
        if value not in ("0", "NULL", "0.0f"):
            if not re.fullmatch(r"[0-9.e -]+f?|LOWBIT_\w+( \| LOWBIT_\w+)*", value):
                raise Unknown(f"default {value} of {name}")
            result[name] = value if "|" in value else value.replace(" ", "").removesuffix("f")
    return result


# --- Python --------------------------------------------------------------------------------------

PYTHON = {
    "int32_t": "c_int32",
    "int64_t": "c_int64",
    "uint32_t": "c_uint32",
    "uint64_t": "c_uint64",
    "size_t": "c_size_t",
    "float": "c_float",
    "double": "c_double",
}


def python_type(declared, header):
    if isinstance(declared, Name):
        if declared.name in PYTHON:
            return PYTHON[declared.name]
        if declared.name in header.aliases or declared.name in header.structs:
            return declared.name
        raise Unknown(f"type {declared.name}")
    if isinstance(declared.to, Function):
        function = declared.to
        types = [python_return(function.returns, header)]
        types += [python_type(kind, header) for _, kind in function.parameters]
        return f"CFUNCTYPE({', '.join(types)})"
    if isinstance(declared.to, Name):
        if declared.to.name == "void":
            return "c_void_p"
        if declared.to.name == "char":
            return "c_char_p" if declared.to.const else "POINTER(c_char)"
        if declared.to.name in header.opaque:
            return f"POINTER({declared.to.name})"
    return f"POINTER({python_type(declared.to, header)})"


def python_return(declared, header):
    return "None" if declared == Name("void") else python_type(declared, header)


SIZED = '''
class Sized(Structure):
    """A struct that begins with its own size."""

    _init_ = {}

    @classmethod
    def init(cls, **fields):
        """As the struct's INIT macro sets it, with `fields` on top."""
        return cls(**{"struct_size": sizeof(cls), **cls._init_, **fields})
'''


def python_list(items, indent):
    """`items` in brackets' inside: one line if it fits, else one item a line."""
    line = ", ".join(items)
    if len(line) + indent < 80:
        return line
    space = " " * indent
    return "\n" + "".join(f"{space}    {item},\n" for item in items) + space


def python(header):
    body = [f"{name} = {value}" for name, value in header.constants.items()]
    body += ["", SIZED.rstrip()]
    after_class = True
    for kind, name in header.order:
        if kind in ("opaque", "struct") or (kind == "alias" and after_class):
            body += ["", ""]
        after_class = kind != "alias"
        if kind == "opaque":
            body += [f"class {name}(Structure):", '    """Opaque."""']
        elif kind == "alias":
            body.append(f"{name} = {python_type(header.aliases[name], header)}")
        elif kind == "struct":
            values = defaults(name, header)
            body.append(f"class {name}({'Structure' if values is None else 'Sized'}):")
            body.append("    _fields_ = [")
            for key, declared in header.structs[name]:
                body.append(f'        ("{key}", {python_type(declared, header)}),')
            body.append("    ]")
            if values:
                items = [f'"{key}": {value}' for key, value in values.items()]
                body.append(f"    _init_ = {{{python_list(items, 4)}}}")
    body += ["", "", "#: name -> (return type, argument types)", "FUNCTIONS = {"]
    for name, function in header.functions.items():
        types = [python_type(declared, header) for _, declared in function.parameters]
        body.append(f'    "{name}": (')
        body.append(f"        {python_return(function.returns, header)},")
        # The comma makes a tuple of one.
        body.append(f"        ({python_list(types, 8)}{',' if len(types) == 1 else ''}),")
        body.append("    ),")
    text = "\n".join(body + ["}", ""])
    used = sorted(set(re.findall(r"\b(?:c_\w+|CFUNCTYPE|POINTER|Structure|sizeof)\b", text)))
    head = [
        '"""The C ABI for ctypes. Generated from include/lowbit.h by bindings/generate.py."""',
        "",
    ]
    head += ["from ctypes import (", *(f"    {name}," for name in used), ")", "", ""]
    return "\n".join(head) + text


# --- Julia ---------------------------------------------------------------------------------------

JULIA = {
    "int32_t": "Int32",
    "int64_t": "Int64",
    "uint32_t": "UInt32",
    "uint64_t": "UInt64",
    "size_t": "Csize_t",
    "float": "Cfloat",
    "double": "Cdouble",
    "char": "UInt8",
    "void": "Cvoid",
}


def julia_type(declared, header, argument=False):
    """`argument`: a const char pointer may be given as a String."""
    if isinstance(declared, Name):
        if declared.name in JULIA:
            return JULIA[declared.name]
        if declared.name in header.aliases:
            target = header.aliases[declared.name]
            return declared.name if isinstance(target, Name) else julia_type(target, header)
        if declared.name in header.structs or declared.name in header.opaque:
            return declared.name
        raise Unknown(f"type {declared.name}")
    if isinstance(declared.to, Function):
        return "Ptr{Cvoid}"
    if argument and declared.to == Name("char", const=True):
        return "Cstring"
    return f"Ptr{{{julia_type(declared.to, header)}}}"


def julia_default(declared, value, header):
    if isinstance(declared, Pointer) or julia_type(declared, header).startswith("Ptr"):
        if value is not None:
            raise Unknown(f"default {value} of a pointer")
        return "C_NULL"
    if value is None:
        return "lowbit_buffer_t(C_NULL, 0)" if declared.name in header.structs else "0"
    return value


def julia(header):
    out = [
        "# The C ABI. Generated from include/lowbit.h by bindings/generate.py.",
        "#",
        "# `sym(name)` is the hand-written part's: the address of a function, looked up once.",
        "",
    ]
    for name, value in header.constants.items():
        alias = alias_of(name, header)
        kind = JULIA[header.aliases[alias].name] if alias else None
        out.append(f"const {name} = {kind}({value})" if kind else f"const {name} = {value}")
    for kind, name in header.order:
        if kind == "opaque":
            out += ["", f"const {name} = Cvoid"]
        elif kind == "alias":
            target = header.aliases[name]
            if isinstance(target, Name):
                out += ["", f"const {name} = {julia_type(target, header)}"]
        elif kind == "struct":
            fields = header.structs[name]
            out += ["", f"struct {name}"]
            out += [f"    {key}::{julia_type(declared, header)}" for key, declared in fields]
            out.append("end")
            values = defaults(name, header)
            if values is not None:
                out += [
                    "",
                    '"As the INIT macro sets it; keywords are fields."',
                    f"function {name}(;",
                ]
                out.append(f"    struct_size = sizeof({name}),")
                for key, declared in fields[1:]:
                    out.append(f"    {key} = {julia_default(declared, values.get(key), header)},")
                out += [")", f"    {name}("]
                out += [f"        {key}," for key, _ in fields]
                out += ["    )", "end"]
    for name, function in header.functions.items():
        names = [key for key, _ in function.parameters]
        types = [julia_type(declared, header, True) for _, declared in function.parameters]
        out += ["", f"{name}({', '.join(names)}) = ccall("]
        out.append(f"    sym(:{name}),")
        out.append(f"    {julia_type(function.returns, header, True)},")
        out.append("    (" + ", ".join(types) + ("," if len(types) == 1 else "") + "),")
        out += [f"    {key}," for key in names]
        out.append(")")
    return "\n".join(out) + "\n"


# -------------------------------------------------------------------------------------------------

OUTPUTS = {
    ROOT / "bindings" / "python" / "lowbit" / "_c_api.py": python,
    ROOT / "bindings" / "julia" / "src" / "c_api.jl": julia,
}


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    try:
        header = parse(HEADER.read_text(encoding="utf-8"))
        texts = {path: write(header) for path, write in OUTPUTS.items()}
    except Unknown as error:
        sys.exit(f"{HEADER.relative_to(ROOT)}: {error}")
    stale = False
    for path, text in texts.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == text:
            continue
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
            continue
        stale = True
        name = str(path.relative_to(ROOT))
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(True), text.splitlines(True), name, "generated")
        )
    if stale:
        sys.exit("stale declarations: run python3 bindings/generate.py")


if __name__ == "__main__":
    main(sys.argv[1:])
