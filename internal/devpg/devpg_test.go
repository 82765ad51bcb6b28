package devpg_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kluis/internal/devpg"
)

func start(t *testing.T, c devpg.Config) *devpg.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := devpg.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, cl) })
	return cl
}

func stop(t *testing.T, cl *devpg.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := cl.Stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(cl.PID())); err == nil {
		t.Errorf("process %d still runs", cl.PID())
	}
}

func query(t *testing.T, url, q string) (string, error) {
	t.Helper()
	db, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var s sql.NullString
	err = db.QueryRow(q).Scan(&s)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return s.String, err
}

func mustQuery(t *testing.T, url, q string) string {
	t.Helper()
	s, err := query(t, url, q)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return s
}

// shortDir is a folder whose socket path fits; t.TempDir may be too long and,
// for root, closed to PostgreSQL's user.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "devpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestDurableByDefaultAndPrivate(t *testing.T) {
	t.Parallel()
	cl := start(t, devpg.Config{Dir: shortDir(t), Roles: []string{"kluis_gateway"}})
	super := cl.URL(devpg.Superuser, "postgres")
	for setting, want := range map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "data_checksums": "on",
		"listen_addresses": "", "server_encoding": "UTF8", "lc_collate": "C", "TimeZone": "UTC",
		"log_statement": "none", "log_min_error_statement": "panic", "log_error_verbosity": "terse",
	} {
		if got := mustQuery(t, super, "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	st, err := os.Stat(filepath.Dir(cl.Socket()))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the socket's folder has mode %v (%v), want 0700", st.Mode(), err)
	}
	if os.Getuid() == 0 {
		st, err := os.Stat("/proc/" + strconv.Itoa(cl.PID()))
		if err != nil || st.Sys().(*syscall.Stat_t).Uid == 0 {
			t.Errorf("PostgreSQL runs as root (%v)", err)
		}
	}
}

func TestLetsInOnlyTheListedRoles(t *testing.T) {
	t.Parallel()
	cl := start(t, devpg.Config{Dir: shortDir(t), Roles: []string{"kluis_gateway"}, NoSync: true})
	super := cl.URL(devpg.Superuser, "postgres")
	mustQuery(t, super, "CREATE ROLE kluis_gateway LOGIN")
	mustQuery(t, super, "CREATE ROLE intruder LOGIN")
	if got := mustQuery(t, cl.URL("kluis_gateway", "postgres"), "SELECT current_user"); got != "kluis_gateway" {
		t.Errorf("logged in as %q", got)
	}
	if _, err := query(t, cl.URL("intruder", "postgres"), "SELECT current_user"); err == nil {
		t.Error("a role that is not listed was let in")
	}
	psql, err := devpg.FindBinaries("")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(psql.Dir, "psql"), "-XAtc", "SELECT 1", cl.URL("kluis_gateway", "postgres"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "1" {
		t.Errorf("psql with the same URL: %v\n%s", err, out)
	}
	if os.Getuid() != 0 {
		return
	}
	// Another operating-system user gets nowhere, even to the socket.
	cmd = exec.Command(filepath.Join(psql.Dir, "psql"), "-XAtc", "SELECT 1", cl.URL("kluis_gateway", "postgres"))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("another user was let in: %s", out)
	}
}

func TestResumes(t *testing.T) {
	t.Parallel()
	c := devpg.Config{Dir: shortDir(t), NoSync: true}
	cl := start(t, c)
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "CREATE TABLE kept AS SELECT 42 AS n")
	if err := cl.EnsureDatabase(t.Context(), "kluis", devpg.Superuser); err != nil {
		t.Fatal(err)
	}
	stop(t, cl)
	cl = start(t, c)
	if got := mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "SELECT n FROM kept"); got != "42" {
		t.Errorf("after a restart the table holds %q", got)
	}
	if err := cl.EnsureDatabase(t.Context(), "kluis", devpg.Superuser); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if got := mustQuery(t, cl.URL(devpg.Superuser, "kluis"), "SELECT current_database()"); got != "kluis" {
		t.Errorf("connected to %q", got)
	}
}

func TestSecondStartIsRefused(t *testing.T) {
	t.Parallel()
	c := devpg.Config{Dir: shortDir(t), NoSync: true}
	cl := start(t, c)
	if _, err := devpg.Start(t.Context(), c); !errors.Is(err, devpg.ErrInUse) {
		t.Errorf("a second start: %v, want ErrInUse", err)
	}
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "SELECT 1")
}

func TestRecovers(t *testing.T) {
	t.Parallel()
	c := devpg.Config{Dir: shortDir(t)}
	cl := start(t, c)
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "CREATE TABLE kept AS SELECT 42 AS n")
	pidFile := filepath.Join(filepath.Dir(filepath.Dir(cl.Socket())), "data", "postmaster.pid")
	stale, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-cl.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-cl.Exited()
	stop(t, cl)

	for name, pid := range map[string]int{
		"a process that is gone":           cl.PID(),
		"a process that is something else": sleeper(t),
	} {
		_, rest, _ := strings.Cut(string(stale), "\n")
		if err := os.WriteFile(pidFile, []byte(fmt.Sprintf("%d\n%s", pid, rest)), 0o600); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			st, err := os.Stat(filepath.Dir(pidFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(pidFile, int(st.Sys().(*syscall.Stat_t).Uid), -1); err != nil {
				t.Fatal(err)
			}
		}
		again := start(t, c)
		if got := mustQuery(t, again.URL(devpg.Superuser, "postgres"), "SELECT n FROM kept"); got != "42" {
			t.Errorf("%s: the table holds %q", name, got)
		}
		stop(t, again)
	}
}

// sleeper is a process of the server's user, which PostgreSQL would take for
// a live server.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.Dir = "/"
	if os.Getuid() == 0 {
		cmd.SysProcAttr = devpg.ServerAttributes(t)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

func TestInitdbCutShortIsRepeated(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	half := filepath.Join(dir, "cluster", "data.new")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cl := start(t, devpg.Config{Dir: dir, NoSync: true})
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "SELECT 1")
}

func TestLongPath(t *testing.T) {
	t.Parallel()
	parent := shortDir(t)
	dir := filepath.Join(parent, strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	cl := start(t, devpg.Config{Dir: dir, NoSync: true})
	if len(cl.Socket()) > 107 || !strings.HasPrefix(cl.Socket(), "/tmp/") {
		t.Errorf("socket at %s", cl.Socket())
	}
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "SELECT 1")
	stop(t, cl)
	if _, err := os.Stat(filepath.Dir(cl.Socket())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's folder was left behind: %v", err)
	}
	if _, err := devpg.Start(t.Context(), devpg.Config{Dir: dir, Socket: dir}); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a socket folder too long: %v", err)
	}
}

func TestClosedParent(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root's server runs as another user")
	}
	closed := shortDir(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	c := devpg.Config{Dir: filepath.Join(closed, "pg"), NoSync: true}
	cl := start(t, c)
	away, err := os.ReadFile(filepath.Join(c.Dir, "location"))
	if err != nil {
		t.Fatal(err)
	}
	home := strings.TrimSpace(string(away))
	t.Cleanup(func() { os.RemoveAll(home) })
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "CREATE TABLE kept AS SELECT 42 AS n")
	stop(t, cl)
	cl = start(t, c)
	if got := mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "SELECT n FROM kept"); got != "42" {
		t.Errorf("after a restart the table holds %q", got)
	}
	stop(t, cl)
	if err := os.Rename(home, home+".gone"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home + ".gone") })
	if _, err := devpg.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), home) {
		t.Errorf("the data is gone: %v", err)
	}
}

// TestDiesWithItsParent runs this test binary as the parent and kills it.
func TestDiesWithItsParent(t *testing.T) {
	t.Parallel()
	const asParent = "DEVPG_TEST_PARENT_DIR"
	if dir := os.Getenv(asParent); dir != "" {
		cl, err := devpg.Start(context.Background(), devpg.Config{Dir: dir, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		// Threads that do not carry the child come and go.
		for range 100 {
			go runtime.LockOSThread() // never unlocked: its thread ends
		}
		fmt.Printf("pid=%d\n", cl.PID())
		select {}
	}
	dir := shortDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestDiesWithItsParent$", "-test.v")
	cmd.Env = append(os.Environ(), asParent+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var pid int
	buf, text := make([]byte, 4096), ""
	for pid == 0 {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("the parent ended: %v\n%s", err, text)
		}
		text += string(buf[:n])
		if i := strings.Index(text, "pid="); i >= 0 && strings.Contains(text[i:], "\n") {
			fmt.Sscanf(text[i:], "pid=%d", &pid)
		}
	}
	time.Sleep(300 * time.Millisecond)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("PostgreSQL ended although its parent lives: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	// The next start waits for the one that goes down, and works.
	cl := start(t, devpg.Config{Dir: dir, NoSync: true})
	mustQuery(t, cl.URL(devpg.Superuser, "postgres"), "SELECT 1")
	// Where nobody reaps orphans it stays a zombie, which has no folder.
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
		t.Errorf("PostgreSQL of the killed parent (process %d) still runs in %s", pid, cwd)
	}
}

func TestStopHasADeadline(t *testing.T) {
	t.Parallel()
	cl := start(t, devpg.Config{Dir: shortDir(t), NoSync: true})
	// A stopped postmaster does not answer to a fast shutdown.
	if err := syscall.Kill(cl.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := cl.Stop(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Stop took %v", took)
	}
}

func TestStartHonoursItsContext(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := devpg.Start(ctx, devpg.Config{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a context that has ended: %v", err)
	}
	start(t, devpg.Config{Dir: dir, NoSync: true}) // nothing half-done is left
}

func TestNoBinaries(t *testing.T) {
	t.Parallel()
	_, err := devpg.Start(t.Context(), devpg.Config{Dir: shortDir(t), BinDir: t.TempDir()})
	if !errors.Is(err, devpg.ErrNotInstalled) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("without PostgreSQL: %v", err)
	}
}

func TestMajor(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)": 15,
		"postgres (PostgreSQL) 19beta1":                        19,
		"postgres (PostgreSQL) ":                               0,
		"something else":                                       0,
	} {
		got, err := devpg.Major(line)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", line, got, err)
		}
	}
}

// Root writes in a folder that belongs to PostgreSQL's user: what that user
// puts in the way must not lead root anywhere else.
func TestServerUserLeadsRootNowhere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, c := range []struct {
		name, at string
		victim   func(t *testing.T, path string)
	}{
		{"socket folder", "cluster/run", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}},
		{"access file", "cluster/data/pg_hba.conf", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := shortDir(t)
			stop(t, start(t, devpg.Config{Dir: dir, NoSync: true}))
			outside := shortDir(t)
			if err := os.Chmod(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			victim := filepath.Join(outside, "victim")
			c.victim(t, victim)
			plant := exec.Command("/bin/sh", "-c", `rm -rf "$1" && ln -s "$2" "$1"`, "sh", filepath.Join(dir, c.at), victim)
			plant.Dir, plant.SysProcAttr = "/", devpg.ServerAttributes(t)
			if out, err := plant.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}

			cl, err := devpg.Start(t.Context(), devpg.Config{Dir: dir, NoSync: true})
			if err == nil {
				stop(t, cl)
				t.Error("started")
			}
			st, err := os.Stat(victim)
			if err != nil {
				t.Fatal(err)
			}
			if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 0 || st.Mode().Perm()&0o044 != 0o044 {
				t.Errorf("the file outside belongs to user %d and has mode %v now", uid, st.Mode())
			}
			if b, err := os.ReadFile(victim); err == nil && string(b) != "mine" {
				t.Error("the file outside has been overwritten")
			}
		})
	}
}
