// Memory by address: words, and bytes at any place.

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words {
    uint at[];
};

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats {
    float at[];
};

layout(buffer_reference, std430, buffer_reference_align = 16) buffer Quads {
    uvec4 at[];
};

// Words of a chunk of 256 quantised activations, and where its scales, the sums of its spans and those of its sixteens begin. All
// in the order of the elements.
const uint ACT_WORDS = 96u, ACT_D = 64u, ACT_S = 72u, ACT_H = 80u;

// What a pair of a row and an expert needs, in words: see `Pair` in ffn.rs.
const uint PAIR_WORDS = 20u, PAIR_MATRIX = 0u, PAIR_BIAS = 6u, PAIR_ROW = 12u, PAIR_SCALE = 13u, PAIR_SCALES = 14u;

uint64_t address_at(Words words, uint i) {
    return uint64_t(words.at[i]) | uint64_t(words.at[i + 1u]) << 32;
}
