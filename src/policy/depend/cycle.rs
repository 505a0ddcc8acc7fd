//! Finds what depends on itself.

use std::collections::BTreeMap;

/// For each knot of cycles at least one, each beginning at its smallest number. `targets` are the edges out of each node.
/// Iterative: the depth of dependencies is not bounded by the stack.
pub fn find(targets: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let left = on_cycles(targets);
    let mut done = vec![false; targets.len()];
    let mut cycles = Vec::new();
    for start in 0..targets.len() {
        let mut path = Vec::new();
        let mut places = BTreeMap::new();
        let mut at = start;
        while left.get(at) == Some(&true) && done.get(at) == Some(&false) {
            if let Some(place) = places.get(&at) {
                let mut cycle: Vec<usize> = path.iter().skip(*place).copied().collect();
                let smallest = cycle.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(place, _)| place);
                cycle.rotate_left(smallest);
                cycles.push(cycle);
                break;
            }
            places.insert(at, path.len());
            path.push(at);
            let next = targets.get(at).and_then(|to| to.iter().find(|to| left.get(**to) == Some(&true)));
            match next {
                Some(next) => at = *next,
                None => break,
            }
        }
        for n in path {
            if let Some(done) = done.get_mut(n) {
                *done = true;
            }
        }
    }
    cycles
}

/// Leaves what is on a cycle, or between two: whatever leads nowhere or comes from nowhere is taken away, again and again.
fn on_cycles(targets: &[Vec<usize>]) -> Vec<bool> {
    let mut left = vec![true; targets.len()];
    let mut sources: Vec<Vec<usize>> = vec![Vec::new(); targets.len()];
    for (from, to) in targets.iter().enumerate() {
        for to in to {
            if let Some(sources) = sources.get_mut(*to) {
                sources.push(from);
            }
        }
    }
    for (ahead, behind) in [(targets, &sources[..]), (&sources[..], targets)] {
        let mut degree: Vec<usize> =
            ahead.iter().map(|to| to.iter().filter(|n| left.get(**n) == Some(&true)).count()).collect();
        let mut ends: Vec<usize> = (0..ahead.len()).filter(|n| left[*n] && degree[*n] == 0).collect();
        while let Some(end) = ends.pop() {
            left[end] = false;
            for n in behind.get(end).into_iter().flatten().filter(|n| left[**n]) {
                degree[*n] -= 1;
                if degree[*n] == 0 {
                    ends.push(*n);
                }
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn each_knot_is_found_and_what_only_leads_there_is_not() {
        assert_eq!(find(&[vec![1], vec![2], vec![]]), [[0; 0]; 0]);
        assert_eq!(find(&[vec![0]]), [[0]]);
        assert_eq!(find(&[vec![2], vec![0], vec![3], vec![2]]), [[2, 3]]);
        assert_eq!(find(&[vec![1], vec![0], vec![3], vec![2], vec![0, 2]]), [[0, 1], [2, 3]]);
        // two cycles, joined by a path
        assert_eq!(find(&[vec![1], vec![0, 2], vec![3], vec![4], vec![3]]), [[0, 1], [3, 4]]);
        let long: Vec<Vec<usize>> = (0..100_000).map(|n| vec![(n + 1) % 100_000]).collect();
        assert_eq!(find(&long)[0].len(), 100_000);
    }
}
