// IEEE arithmetic with one rounding to nearest, ties to even, whatever the device does.
//
// A device whose own operations give these bits runs them; on any other, or on one that fuses or flushes, SOFT does the same
// in whole numbers. Division always does: Vulkan lets a device miss the quotient by 2.5 units in the last place.

layout(constant_id = 0) const bool SOFT = false;

const uint SIGN = 0x80000000u;
const uint INFINITE = 0x7f800000u;
const uint QUIET = 0x7fc00000u;

// The float nearest to m * 2^e, with a sign. The lowest bit of m may stand for any smaller part that is not zero.
uint pack(uint sign, uint64_t m, int e) {
    if (m == 0ul) {
        return sign;
    }
    uint high = uint(m >> 32);
    int top = high != 0u ? 32 + findMSB(high) : findMSB(uint(m));
    int exponent = top + e + 127;
    if (exponent >= 255) {
        return sign | INFINITE;
    }
    // Bits to drop, so that 24 are left, or fewer of a subnormal.
    int drop = top - 23 + max(1 - exponent, 0);
    uint kept;
    if (drop <= 0) {
        kept = uint(m) << uint(-drop);
    } else if (drop > top + 1) {
        kept = 0u;
    } else {
        uint64_t half_unit = 1ul << uint(drop - 1);
        uint64_t rest = m & ((half_unit << 1) - 1ul);
        // A shift by 64 is undefined: drop is at most top + 1, and m has at most 63 bits.
        kept = uint(m >> uint(drop));
        if (rest > half_unit || (rest == half_unit && (kept & 1u) == 1u)) {
            kept += 1u;
        }
    }
    // A carry out of the 24 bits goes into the exponent, where it belongs.
    return sign | (exponent >= 1 ? (uint(exponent - 1) << 23) + kept : kept);
}

// A finite float's magnitude is m * 2^e.
void unpack(uint bits, out uint m, out int e) {
    uint exponent = bits >> 23 & 255u;
    m = bits & 0x7fffffu;
    if (exponent != 0u) {
        m |= 0x800000u;
    }
    e = max(int(exponent), 1) - 150;
}

bool is_finite(uint bits) {
    return (bits & INFINITE) != INFINITE;
}

// m, not zero, with bit 61 as its highest.
uint64_t raised(uint64_t m, inout int e) {
    uint high = uint(m >> 32);
    int top = high != 0u ? 32 + findMSB(high) : findMSB(uint(m));
    e -= 61 - top;
    return m << uint(61 - top);
}

uint soft_fma(uint a, uint b, uint c) {
    if (!is_finite(a) || !is_finite(b)) {
        // In bits, since a device that flushes takes a subnormal number for zero here.
        uint product = ((a ^ b) & SIGN) | INFINITE;
        bool nan = max(max(a & ~SIGN, b & ~SIGN), c & ~SIGN) > INFINITE || min(a & ~SIGN, b & ~SIGN) == 0u;
        return nan || (!is_finite(c) && c != product) ? QUIET : product;
    }
    if (!is_finite(c)) {
        return c;
    }
    uint ma, mb, mc;
    int ea, eb, ec;
    unpack(a, ma, ea);
    unpack(b, mb, eb);
    unpack(c, mc, ec);
    uint sign = (a ^ b) & SIGN;
    if (ma == 0u || mb == 0u) {
        return mc != 0u ? c : sign & c;
    }
    int e = ea + eb;
    uint64_t m = raised(uint64_t(ma) * uint64_t(mb), e);
    if (mc == 0u) {
        return pack(sign, m, e);
    }
    uint64_t other = raised(uint64_t(mc), ec);
    uint other_sign = c & SIGN;
    if (ec > e || (ec == e && other > m)) {
        uint64_t swapped = m;
        m = other;
        other = swapped;
        int swapped_e = e;
        e = ec;
        ec = swapped_e;
        uint swapped_sign = sign;
        sign = other_sign;
        other_sign = swapped_sign;
    }
    // What is shifted out is kept as a lowest bit. Both have zeros enough that nothing is where much can cancel.
    int shift = e - ec;
    if (shift >= 62) {
        other = 1ul;
    } else if (shift > 0) {
        uint64_t lost = other & ((1ul << uint(shift)) - 1ul);
        other = other >> uint(shift) | (lost != 0ul ? 1ul : 0ul);
    }
    m = sign == other_sign ? m + other : m - other;
    return m == 0ul ? 0u : pack(sign, m, e);
}

// Whether a number is so small, and not zero, that a device may flush it: below 2^-125.
bool is_small(uint bits) {
    return ((bits & ~SIGN) - 1u) < 0x00ffffffu;
}

// Whether a device that flushes may have made r of these: small operands, or a result that is small or gone.
bool may_be_flushed(float a, float b, float c, float r) {
    uint x = floatBitsToUint(a), y = floatBitsToUint(b), result = floatBitsToUint(r) & ~SIGN;
    bool gone = result == 0u && (x & ~SIGN) != 0u && (y & ~SIGN) != 0u;
    return gone || is_small(result) || is_small(x) || is_small(y) || is_small(floatBitsToUint(c));
}

// a * b + c, rounded once.
float f_fma(float a, float b, float c) {
    precise float r = SOFT ? 0.0 : fma(a, b, c);
    if (SOFT || may_be_flushed(a, b, c, r)) {
        return uintBitsToFloat(soft_fma(floatBitsToUint(a), floatBitsToUint(b), floatBitsToUint(c)));
    }
    return r;
}

float f_mul(float a, float b) {
    precise float r = SOFT ? 0.0 : a * b;
    if (SOFT || may_be_flushed(a, b, 0.0, r)) {
        return uintBitsToFloat(soft_fma(floatBitsToUint(a), floatBitsToUint(b), SIGN));
    }
    return r;
}

float f_add(float a, float b) {
    precise float r = SOFT ? 0.0 : a + b;
    if (SOFT || may_be_flushed(a, 1.0, b, r)) {
        return uintBitsToFloat(soft_fma(floatBitsToUint(a), 0x3f800000u, floatBitsToUint(b)));
    }
    return r;
}

float f_div(float a, float b) {
    uint x = floatBitsToUint(a), y = floatBitsToUint(b);
    uint sign = (x ^ y) & SIGN;
    uint mx, my;
    int ex, ey;
    unpack(x, mx, ex);
    unpack(y, my, ey);
    if (!is_finite(x) || !is_finite(y) || my == 0u) {
        bool nan = (x & ~SIGN) > INFINITE || (y & ~SIGN) > INFINITE || (is_finite(x) == is_finite(y) && mx == 0u && my == 0u)
            || (!is_finite(x) && !is_finite(y));
        if (nan) {
            return uintBitsToFloat(0x7fc00000u);
        }
        return uintBitsToFloat(is_finite(y) ? sign | INFINITE : sign);
    }
    if (mx == 0u) {
        return uintBitsToFloat(sign);
    }
    // 24 bits each.
    int up = 23 - findMSB(mx), up_by = 23 - findMSB(my);
    uint above = mx << uint(up), below = my << uint(up_by);
    // 26 bits of the quotient or 27: first about, then what is missing of it, then to the last bit, whatever the device's own
    // division gives.
    float reciprocal = 1.0 / float(below);
    int quotient = int(float(above) * reciprocal * 67108864.0);
    int64_t rest = (int64_t(above) << 26) - int64_t(quotient) * int64_t(below);
    int missing = int(float(rest) * reciprocal);
    quotient += missing;
    rest -= int64_t(missing) * int64_t(below);
    while (rest < 0l) {
        quotient -= 1;
        rest += int64_t(below);
    }
    while (rest >= int64_t(below)) {
        quotient += 1;
        rest -= int64_t(below);
    }
    uint64_t kept = uint64_t(uint(quotient) | (rest == 0l ? 0u : 1u));
    return uintBitsToFloat(pack(sign, kept, ex - up - (ey - up_by) - 26));
}

// A half's bits as a float, exactly.
float from_half(uint bits) {
    uint exponent = bits >> 10 & 31u, fraction = bits & 1023u;
    uint sign = (bits & 0x8000u) << 16;
    if (exponent == 0u) {
        float magnitude = float(fraction) * 5.9604644775390625e-8; // 2^-24
        return uintBitsToFloat(sign | floatBitsToUint(magnitude));
    }
    if (exponent == 31u) {
        return uintBitsToFloat(sign | INFINITE | fraction << 13);
    }
    return uintBitsToFloat(sign | (exponent + 112u) << 23 | fraction << 13);
}

// e^x as the CPU's kernels compute it, step by step.
float f_exp(float x) {
    const float LOWEST = -87.33654, HIGHEST = 88.37626;
    if ((floatBitsToUint(x) & ~SIGN) > INFINITE) {
        // Apart: compilers make minimum and maximum of the lines below, which drop a NaN.
        return x;
    }
    float clamped = HIGHEST < x ? HIGHEST : x;
    clamped = LOWEST > clamped ? LOWEST : clamped;
    float n = roundEven(f_mul(clamped, uintBitsToFloat(0x3fb8aa3bu)));
    float r = f_fma(-n, 0.6933594, clamped);
    r = f_fma(-n, -2.1219444e-4, r);
    float p = 1.9875691e-4;
    p = f_fma(p, r, 1.3981999e-3);
    p = f_fma(p, r, 8.333452e-3);
    p = f_fma(p, r, 4.1665796e-2);
    p = f_fma(p, r, 1.6666665e-1);
    p = f_fma(p, r, 0.5);
    p = f_add(f_fma(p, f_mul(r, r), r), 1.0);
    float power = uintBitsToFloat(uint(int(n) + 127) << 23);
    return x < LOWEST ? 0.0 : f_mul(p, power);
}
