"""The C structs mirrored by src/xla/ffi.rs, as the compiler sees them in jaxlib's header."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest

import support  # noqa: F401  (first: it chooses the platform)

import jax

# The numbers that the test in src/xla/ffi.rs compares the mirror with.
OFFSETS = {
    "XLA_FFI_CallFrame": {
        "struct_size": 0,
        "extension_start": 8,
        "api": 16,
        "ctx": 24,
        "stage": 32,
        "args": 40,
        "rets": 80,
        "attrs": 120,
    },
    "XLA_FFI_Args": {"struct_size": 0, "extension_start": 8, "size": 16, "types": 24, "args": 32},
    "XLA_FFI_Rets": {"struct_size": 0, "extension_start": 8, "size": 16, "types": 24, "rets": 32},
    "XLA_FFI_Attrs": {
        "struct_size": 0,
        "extension_start": 8,
        "size": 16,
        "types": 24,
        "names": 32,
        "attrs": 40,
    },
    "XLA_FFI_Buffer": {
        "struct_size": 0,
        "extension_start": 8,
        "dtype": 16,
        "data": 24,
        "rank": 32,
        "dims": 40,
    },
    "XLA_FFI_Metadata_Extension": {"metadata": 24},
    "XLA_FFI_Metadata": {
        "struct_size": 0,
        "api_version.major_version": 24,
        "api_version.minor_version": 28,
        "traits": 32,
    },
    "XLA_FFI_Api": {
        "struct_size": 0,
        "extension_start": 8,
        "api_version": 16,
        "internal_api": 40,
        "XLA_FFI_Error_Create": 48,
        "XLA_FFI_Error_GetMessage": 56,
        "XLA_FFI_Error_Destroy": 64,
        "XLA_FFI_Stream_Get": 80,
    },
    "XLA_FFI_Error_Create_Args": {
        "struct_size": 0,
        "extension_start": 8,
        "message": 16,
        "errc": 24,
    },
    "XLA_FFI_Error_GetMessage_Args": {"error": 16, "message": 24},
    "XLA_FFI_Error_Destroy_Args": {"error": 16},
    "XLA_FFI_Stream_Get_Args": {"ctx": 16, "stream": 24},
    "XLA_FFI_ByteSpan": {"ptr": 0, "len": 8},
    "XLA_FFI_Scalar": {"dtype": 0, "value": 8},
}

CONSTANTS = {
    "XLA_FFI_Extension_Metadata": 1,
    "XLA_FFI_ExecutionStage_INITIALIZE": 2,
    "XLA_FFI_ExecutionStage_EXECUTE": 3,
    "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE": 1,
    "XLA_FFI_ArgType_BUFFER": 1,
    "XLA_FFI_RetType_BUFFER": 1,
    "XLA_FFI_AttrType_SCALAR": 3,
    "XLA_FFI_AttrType_STRING": 4,
    "XLA_FFI_DataType_F32": 11,
    "XLA_FFI_DataType_BF16": 16,
    "XLA_FFI_DataType_F16": 10,
    "XLA_FFI_DataType_U8": 6,
    "XLA_FFI_DataType_S32": 4,
    "XLA_FFI_DataType_S64": 5,
    "XLA_FFI_DataType_U16": 7,
    "XLA_FFI_DataType_S8": 2,
    "XLA_FFI_Error_Code_INVALID_ARGUMENT": 3,
    "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED": 8,
    "XLA_FFI_Error_Code_UNIMPLEMENTED": 12,
    "XLA_FFI_Error_Code_INTERNAL": 13,
}


class TestLayout(unittest.TestCase):
    def test_header_of_jaxlib(self):
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.assertIsNotNone(compiler, "a C compiler is needed")
        lines = ["#include <stddef.h>", '#include "xla/ffi/api/c_api.h"']
        for struct, fields in OFFSETS.items():
            for field, offset in fields.items():
                lines.append(
                    f'_Static_assert(offsetof({struct}, {field}) == {offset}, "{struct}.{field}");'
                )
        for name, value in CONSTANTS.items():
            lines.append(f'_Static_assert({name} == {value}, "{name}");')
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder) / "layout.c"
            source.write_text("\n".join(lines) + "\n", encoding="utf-8")
            done = subprocess.run(
                [compiler, "-fsyntax-only", "-I", jax.ffi.include_dir(), str(source)],
                capture_output=True,
                text=True,
                check=False,
            )
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
