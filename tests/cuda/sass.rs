//! Machine code as nvdisasm prints it, and how many instructions a loop of it executes.

use std::collections::{HashMap, VecDeque};

/// One kernel.
pub(crate) struct Function {
    pub(crate) name: String,
    instructions: Vec<String>,
    /// Those that may be executed after each.
    next: Vec<Vec<usize>>,
}

/// The kernels of one module.
pub(crate) fn functions(text: &str) -> Vec<Function> {
    let mut functions = Vec::new();
    let mut body: Option<(String, Vec<String>, HashMap<String, usize>)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix(".text.") {
            functions.extend(body.take().map(finish));
            let name = rest.trim_end_matches(':').to_owned();
            body = Some((name, Vec::new(), HashMap::new()));
        } else if let Some((_, instructions, labels)) = &mut body {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label.to_owned(), instructions.len());
            } else if let Some((_, rest)) = line.split_once("*/")
                && let Some((instruction, _)) = rest.split_once(';')
            {
                instructions.push(instruction.trim().to_owned());
            }
        }
    }
    functions.extend(body.map(finish));
    functions
}

fn finish((name, instructions, labels): (String, Vec<String>, HashMap<String, usize>)) -> Function {
    let next = instructions.iter().enumerate();
    let next = next.map(|(i, instruction)| {
        let (predicated, body) = match instruction.strip_prefix('@') {
            Some(rest) => (true, rest.split_once(' ').map_or("", |(_, body)| body)),
            None => (false, instruction.as_str()),
        };
        let mut next = Vec::new();
        let ends = body.starts_with("EXIT") || body.starts_with("RET");
        if body.starts_with("BRA") {
            let label = body
                .split_once('(')
                .and_then(|(_, rest)| rest.split_once(')'));
            next.extend(label.and_then(|(label, _)| labels.get(label)));
        }
        // A branch may have a condition of its own, before its target.
        let conditional = predicated || body.contains(',') || body.starts_with("BRA.DIV");
        if !(ends || body.starts_with("BRA")) || conditional {
            next.push(i + 1);
        }
        next.retain(|i| *i < instructions.len());
        next
    });
    Function {
        name,
        next: next.collect(),
        instructions,
    }
}

impl Function {
    /// The instructions whose text, without what predicates them, fits.
    pub(crate) fn find(&self, fits: impl Fn(&str) -> bool) -> Vec<usize> {
        let fits = |instruction: &String| {
            let body = match instruction.strip_prefix('@') {
                Some(rest) => rest.split_once(' ').map_or("", |(_, body)| body),
                None => instruction,
            };
            fits(body)
        };
        let found = self.instructions.iter().enumerate();
        found
            .filter(|(_, text)| fits(text))
            .map(|(i, _)| i)
            .collect()
    }

    /// The fewest instructions of a way through a loop that passes one of each group and none of
    /// those to avoid. Kernels do what is rare in longer ways, so this is what a loop does usually.
    pub(crate) fn shortest_loop(&self, groups: &[Vec<usize>], avoid: &[usize]) -> Option<usize> {
        if groups.iter().any(Vec::is_empty) {
            return None;
        }
        let passes = |i: usize| {
            let each = groups.iter().enumerate();
            each.filter(|(_, group)| group.contains(&i))
                .map(|(bit, _)| 1 << bit)
                .sum::<usize>()
        };
        let passes: Vec<_> = (0..self.next.len()).map(passes).collect();
        let backward = |(i, next): (usize, &Vec<usize>)| {
            let heads: Vec<_> = next.iter().copied().filter(|to| *to <= i).collect();
            heads
        };
        let mut heads: Vec<_> = self.next.iter().enumerate().flat_map(backward).collect();
        heads.sort_unstable();
        heads.dedup();
        let loops = heads
            .into_iter()
            .filter_map(|head| self.loop_at(head, groups.len(), &passes, avoid));
        loops.min()
    }

    /// The same from one instruction back to it, breadth first over places and groups passed.
    fn loop_at(
        &self,
        head: usize,
        groups: usize,
        passes: &[usize],
        avoid: &[usize],
    ) -> Option<usize> {
        let all = (1 << groups) - 1;
        let mut seen = vec![false; passes.len() << groups];
        let mut queue = VecDeque::from([(head, passes[head], 1)]);
        while let Some((i, passed, count)) = queue.pop_front() {
            for &to in &self.next[i] {
                if to == head && passed == all {
                    return Some(count);
                }
                let state = (to << groups) | passed | passes[to];
                if !seen[state] && !avoid.contains(&to) {
                    seen[state] = true;
                    queue.push_back((to, passed | passes[to], count + 1));
                }
            }
        }
        None
    }
}
