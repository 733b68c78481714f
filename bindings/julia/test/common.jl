# What the tests share: the numbers and the hash of tests/common/README.md.

using SHA

# All arithmetic on UInt64 wraps.
function mix(x::UInt64)
    x += 0x9e3779b97f4a7c15
    x = (x ⊻ (x >> 30)) * 0xbf58476d1ce4e5b9
    x = (x ⊻ (x >> 27)) * 0x94d049bb133111eb
    return x ⊻ (x >> 31)
end

word(stream, i) = mix(UInt64(stream) << 40 + UInt64(i))
signed24(h) = Int64(h >> 40) - 2^23

"Element `i`, counted from 0 in memory order, of a parameter and of a gradient."
param_number(stream, i) = ldexp(Float32(signed24(word(stream, i))), -27)
function grad_number(stream, i)
    h = word(stream, i)
    return i ÷ 512 % 5 == 4 ? 0.0f0 : ldexp(Float32(signed24(h)), -23 - Int(h & 15))
end

"An array of `size` in memory order."
numbers(f, stream, size) = reshape([f(stream, i) for i in 0:prod(size)-1], size)

"The bf16 array that has the upper halves of the values."
truncated(values) = Lowbit.BF16(map(x -> (reinterpret(UInt32, x) >> 16) % UInt16, values))

memory(array::Array) = collect(reinterpret(UInt8, vec(array)))
memory(array::Lowbit.BF16) = memory(array.bits)

"The f16 array that has the upper 11 significant bits of the values, 0 below 2^-14."
function truncated16(values)
    return map(values) do x
        bits = reinterpret(UInt32, x)
        sign, exponent, fraction = bits >> 31 << 15, bits >> 23 & 0xff, bits >> 13 & 0x3ff
        half = exponent < 113 ? sign : sign | (exponent - 112) << 10 | fraction
        reinterpret(Float16, half % UInt16)
    end
end

"SHA-256 of all parameters' bytes, then of all state buffers'."
function fingerprint(params, state)
    context = SHA.SHA2_256_CTX()
    for array in [params; collect(values(state))]
        SHA.update!(context, memory(array))
    end
    return bytes2hex(SHA.digest!(context))
end
