package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuOf is the CPU time of a process so far, all its threads together, to the
// nanosecond: its process clock, which clock_getcpuclockid(3) names this way.
func cpuOf(pid int) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// cpuOfTree is that of a process, its children and theirs, with what it waited
// for.
func cpuOfTree(root int) (time.Duration, error) {
	pids, err := tree(root)
	if err != nil {
		return 0, err
	}
	total, err := waitedFor(root)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		t, err := cpuOf(pid)
		if err != nil && pid != root {
			continue // ended since; its parent waited for it
		}
		if err != nil {
			return 0, err
		}
		total += t
	}
	return total, nil
}

// stat is the fields of /proc/<pid>/stat from the third on (proc(5)): the
// second may hold blanks.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	if f := strings.Fields(rest); ok && len(f) > 20 {
		return f, nil
	}
	return nil, fmt.Errorf("/proc/%d/stat cannot be read", pid)
}

// waitedFor is the CPU time of children that ended.
func waitedFor(pid int) (time.Duration, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	const tick = time.Second / 100 // USER_HZ, the same on every Linux
	user, err1 := strconv.Atoi(f[13])
	system, err2 := strconv.Atoi(f[14])
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// tree lists a process and its descendants.
func tree(root int) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		f, err := stat(pid)
		if err != nil {
			continue // ended since
		}
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], pid)
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// memory is that of a process in bytes.
type memory struct {
	Resident int64 `json:"resident"`
	Peak     int64 `json:"peak"` // since the last resetPeak
	own      int64
	shared   int64
}

func memoryOf(pid int) (memory, error) {
	var m memory
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		into := map[string]*int64{"VmRSS": &m.Resident, "VmHWM": &m.Peak, "RssAnon": &m.own, "RssShmem": &m.shared}[key]
		if into == nil {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, err
		}
		*into = kb << 10
	}
	return m, nil
}

// memoryOfTree is the memory that the processes of a tree have each for
// themselves, and once what they share.
func memoryOfTree(root int) (int64, error) {
	pids, err := tree(root)
	if err != nil {
		return 0, err
	}
	var own, shared int64
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		own += m.own
		shared = max(shared, m.shared)
	}
	return own + shared, nil
}

// resetPeak makes the present memory of a process its peak (proc(5)).
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}
