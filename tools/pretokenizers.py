#!/usr/bin/env python3
"""Writes tests/data/pretokenizers.json anew: what llama.cpp makes of its texts with each pre-tokenizer.

    python3 -m venv venv && venv/bin/pip install gguf xllamacpp
    venv/bin/python tools/pretokenizers.py

A vocabulary of all bytes and of all pairs of bytes that the texts have, merged in an order that has nothing to do with
language: wherever a text is cut, other pairs are left. `tests/tokenizer.rs` builds the same. The library of xllamacpp has
llama.cpp's functions; its parameters are taken as bytes, of which the 73rd means the vocabulary alone.
"""
import ctypes, glob, json, os, re, sys, tempfile
import gguf, xllamacpp

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = f"{HERE}/../tests/data/pretokenizers.json"
ONLY_VOCABULARY = 72

class Params(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 1024)]

def names():
    """The byte-level pre-tokenizers of src/tokenizer/pretokenizer.rs."""
    table = open(f"{HERE}/../src/tokenizer/pretokenizer.rs").read()
    table = table[table.index("fn row(") : table.index("_ => return None")]
    rows = re.findall(r'((?:\s*\|?\s*"[\w.\-]+"\s*\|?)+)\s*=>', table)
    return [name for row in rows for name in re.findall(r'"([\w.\-]+)"', row) if name not in ("gemma4", "sarvam-moe")]

def vocabulary(texts):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    char = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    pairs = {pair for text in texts for pair in zip(text.encode(), text.encode()[1:])}
    order = [divmod((i * 40503 + 12345) % 65536, 256) for i in range(65536)]
    merged = [(char[a], char[b]) for a, b in order if (a, b) in pairs]
    return [char[b] for b in range(256)] + [a + b for a, b in merged], [f"{a} {b}" for a, b in merged]

def write(path, pre, tokens, merges):
    w = gguf.GGUFWriter(path, "gpt2")
    w.add_block_count(1)
    w.add_context_length(16)
    w.add_embedding_length(8)
    w.add_feed_forward_length(8)
    w.add_head_count(1)
    w.add_layer_norm_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens + ["<|end|>"])
    w.add_token_types([1] * len(tokens) + [3])
    w.add_token_merges(merges)
    w.add_bos_token_id(len(tokens))
    w.add_eos_token_id(len(tokens))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()

def fnv(tokens):
    """FNV-1a, 64 bits, of the tokens as 32-bit numbers."""
    h = 0xCBF29CE484222325
    for byte in b"".join(t.to_bytes(4, "little") for t in tokens):
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return f"{h:016x}"

def library():
    [path] = glob.glob(os.path.dirname(xllamacpp.__file__) + "/*.so")
    lib = ctypes.CDLL(path)
    lib.llama_model_default_params.restype = Params
    lib.llama_model_load_from_file.restype = ctypes.c_void_p
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
    lib.llama_model_get_vocab.restype = ctypes.c_void_p
    lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    lib.llama_model_free.argtypes = [ctypes.c_void_p]
    i32, flag, pointer = ctypes.c_int32, ctypes.c_bool, ctypes.c_void_p
    lib.llama_tokenize.argtypes = [pointer, ctypes.c_char_p, i32, pointer, i32, flag, flag]
    lib.llama_version.restype = ctypes.c_char_p
    lib.llama_backend_init()
    return lib

def tokenise(lib, path, texts):
    params = lib.llama_model_default_params()
    params.bytes[ONLY_VOCABULARY] = 1
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit("llama.cpp does not take the file")
    all_tokens = []
    for text in texts:
        text = text.encode()
        tokens = (ctypes.c_int32 * (len(text) + 16))()
        n = lib.llama_tokenize(lib.llama_model_get_vocab(model), text, len(text), tokens, len(tokens), False, False)
        all_tokens.append(tokens[:n])
    lib.llama_model_free(model)
    return all_tokens

def main():
    texts, lib, known = json.load(open(DATA))["texts"], library(), {}
    tokens, merges = vocabulary(texts)
    with tempfile.TemporaryDirectory() as folder:
        for name in names():
            write(f"{folder}/vocabulary.gguf", name, tokens, merges)
            known[name] = [fnv(tokens) for tokens in tokenise(lib, f"{folder}/vocabulary.gguf", texts)]
    parts = [f' "llama.cpp": {json.dumps(lib.llama_version().decode())}', f' "texts": {json.dumps(texts, indent=2)}']
    parts.append(' "hashes": {\n' + ",\n".join(f"  {json.dumps(n)}: {json.dumps(h)}" for n, h in known.items()) + "\n }")
    open(DATA, "w").write("{\n" + ",\n".join(parts) + "\n}\n")

if __name__ == "__main__":
    main()
