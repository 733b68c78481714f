//! What the arithmetic in `cuda/ptx.cuh` computes, by the PTX ISA's definitions. Emulation has C++ in
//! its place, and so cannot see a mistake in it.

use std::collections::HashMap;

use half::{bf16, f16};

/// One function whose body is an `asm` statement.
pub(crate) struct Function {
    pub(crate) name: String,
    parameters: Vec<String>,
    instructions: Vec<String>,
    /// Of `%0`, `%1` and so on, as C++.
    operands: Vec<String>,
}

/// The functions of a header, memory operations (`asm volatile`) apart.
pub(crate) fn functions(header: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for text in header.split("__device__ __forceinline__ ").skip(1) {
        let Some((signature, body)) = text.split_once(") {") else {
            continue;
        };
        let Some((_, statement)) = body.split_once("  asm(") else {
            continue;
        };
        let statement = statement.split_once(");\n").unwrap().0;
        let (before, parameters) = signature.split_once('(').unwrap();
        let last_word = |text: &str| text.split_whitespace().last().unwrap().to_owned();
        let sections: Vec<&str> = outside_quotes(statement, ':');
        let template = sections[0]
            .split('"')
            .skip(1)
            .step_by(2)
            .collect::<String>();
        let template = template.trim_start_matches('{').trim_end_matches('}');
        found.push(Function {
            name: last_word(before),
            parameters: parameters.split(", ").map(last_word).collect(),
            instructions: template
                .split(';')
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty() && !text.starts_with(".reg"))
                .collect(),
            operands: sections[1..]
                .iter()
                .flat_map(|section| outside_quotes(section, ','))
                .map(|operand| operand.split_once('(').unwrap().1)
                .map(|operand| operand.rsplit_once(')').unwrap().0.to_owned())
                .collect(),
        });
    }
    found
}

fn outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

impl Function {
    pub(crate) fn arity(&self) -> usize {
        self.parameters.len()
    }

    /// The result, of arguments and to a result that are bit patterns. Panics at an instruction that
    /// is not defined below.
    pub(crate) fn call(&self, arguments: &[u64]) -> u64 {
        assert_eq!(arguments.len(), self.parameters.len(), "{}", self.name);
        let given: HashMap<&str, u64> = self
            .parameters
            .iter()
            .map(String::as_str)
            .zip(arguments.iter().copied())
            .collect();
        let mut registers: HashMap<String, u64> = HashMap::new();
        for (i, operand) in self.operands.iter().enumerate() {
            // A conversion to a narrower integer, whose register keeps what fits it.
            let (name, mask) = match operand.strip_prefix("static_cast<unsigned short>(") {
                Some(inner) => (inner.trim_end_matches(')'), 0xffff),
                None => (operand.as_str(), u64::MAX),
            };
            if let Some(value) = given.get(name).copied().or_else(|| literal(name)) {
                registers.insert(format!("%{i}"), value & mask);
            }
        }
        for instruction in &self.instructions {
            execute(instruction, &mut registers);
        }
        registers["%0"]
    }
}

fn literal(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// PTX ISA 8.x, section 9.7.
fn execute(instruction: &str, registers: &mut HashMap<String, u64>) {
    let mut instruction = instruction;
    if let Some(predicated) = instruction.strip_prefix('@') {
        let (predicate, rest) = predicated.split_once(' ').unwrap();
        if registers[predicate] == 0 {
            return;
        }
        instruction = rest;
    }
    let (operation, operands) = instruction.split_once(' ').unwrap();
    let operands: Vec<&str> = operands.split(", ").collect();
    let value = |i: usize| -> u64 {
        let name = operands[i];
        literal(name).unwrap_or_else(|| registers[name])
    };
    let float = |i: usize| f32::from_bits(value(i) as u32);
    let result = match operation {
        "add.u32" => u64::from((value(1) as u32).wrapping_add(value(2) as u32)),
        "mul.wide.u32" => u64::from(value(1) as u32) * u64::from(value(2) as u32),
        "cvt.u64.u32" => u64::from(value(1) as u32),
        // A larger number of places is as good as 64.
        "shl.b64" => value(1).checked_shl(value(2) as u32).unwrap_or(0),
        // A bit of the result is that bit of the table that the three bits name, a's the highest.
        "lop3.b32" => (0..32)
            .map(|bit| {
                let of = |i: usize| value(i) >> bit & 1;
                (value(4) >> (of(1) << 2 | of(2) << 1 | of(3)) & 1) << bit
            })
            .sum(),
        "max.NaN.f32" => match (float(1), float(2)) {
            (a, b) if a.is_nan() || b.is_nan() => 0x7fff_ffff,
            // -0 is less than 0.
            (a, b) => u64::from(if a.total_cmp(&b).is_gt() { a } else { b }.to_bits()),
        },
        // Ordered comparisons: false if either is NaN.
        "setp.gt.f32" => u64::from(float(1) > float(2)),
        "setp.ge.f32" => u64::from(float(1) >= float(2)),
        // The first source goes to the upper half.
        "cvt.rn.bf16x2.f32" => {
            let round = |i| u64::from(bf16::from_f32(float(i)).to_bits());
            round(1) << 16 | round(2)
        }
        "cvt.rn.f16x2.f32" => {
            let round = |i| u64::from(f16::from_f32(float(i)).to_bits());
            round(1) << 16 | round(2)
        }
        "cvt.f32.f16" => u64::from(f16::from_bits(value(1) as u16).to_f32().to_bits()),
        _ => panic!("{instruction}: not defined here"),
    };
    registers.insert(operands[0].to_owned(), result);
}
