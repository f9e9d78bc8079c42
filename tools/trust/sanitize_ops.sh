#!/bin/sh
# Runs the tests of the operators with the CPU part built under AddressSanitizer and
# UndefinedBehaviorSanitizer, once for each instruction set this processor has. Needs gcc.
#   tools/trust/sanitize_ops.sh [pytest arguments]          PYTHON=... names the interpreter
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

cp -r "$root/defcn_d2" "$root/setup.py" "$root/pyproject.toml" "$root/tests" "$root/configs" "$copy"
cd "$copy"
rm -f defcn_d2/*.so
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
echo "building with $flags"
FORCE_CUDA=0 CC=gcc CXX=g++ CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="$flags" \
    "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }

# The interpreter is not instrumented: the runtime must come first, and what Python itself never
# frees is not ours. verify_asan_link_order: PyTorch's libraries come between.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$copy" OMP_NUM_THREADS=2
for simd in baseline avx2 avx512; do
    echo "instruction set at most: $simd"
    # The compiled forms of torch.compile and the builds of other tests are not under test here.
    DEFCN_D2_OPS_SIMD=$simd "$python" -m pytest -q -p no:cacheprovider \
        tests/ops/test_ops.py tests/ops/test_ops_gradient.py tests/ops/test_ops_dispatcher.py \
        tests/ops/test_overlap_with_better.py \
        -k "not inductor and not onnx and not export" "$@"
done
