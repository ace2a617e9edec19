"""Run inside a stage's container: builds and compiles what a launch on a card needs.

Triton makes a C extension that calls the driver, and machine code by NVIDIA's assembler. Both go
through its cache, which has to be writable, and on a file system whose files may be executed.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import ASTSource
from triton.runtime.build import compile_module_from_src

from stage_server.kernels.jit.elementwise import silu_and_mul_kernel, silu_constants

EXTENSION = """
#include <cuda.h>
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "launcher", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_launcher(void) {
    PyObject *module = PyModule_Create(&definition);
    PyModule_AddIntConstant(module, "cuda_version", CUDA_VERSION);
    return module;
}
"""

launcher = compile_module_from_src(EXTENSION, "launcher", include_dirs=driver.include_dirs)
assert launcher.cuda_version >= 12000
constants = silu_constants(13824)
signature = {
    parameter.name: "constexpr" if parameter.name in constants else "*fp16"
    for parameter in silu_and_mul_kernel.params
}
source = ASTSource(fn=silu_and_mul_kernel, signature=signature, constexprs=constants)
binary = triton.compile(source, target=GPUTarget("cuda", 86, 32))
print(f"{len(binary.asm['cubin'])} bytes for sm_86, by {triton.knobs.cache.dir}")
