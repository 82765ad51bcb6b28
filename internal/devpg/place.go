package devpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// account is the user the server runs as; the zero value is the caller's own.
type account struct {
	uid, gid int
	drop     bool
}

// serverUser is the caller, or for root a user without privileges.
func serverUser() (account, error) {
	if os.Getuid() != 0 {
		return account{uid: os.Getuid(), gid: os.Getgid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return account{}, fmt.Errorf("devpg: user %s: %w", name, err)
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			return account{}, fmt.Errorf("devpg: user %s: %w", name, err)
		}
		return account{uid: uid, gid: gid, drop: true}, nil
	}
	return account{}, errors.New("devpg: PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as: run  adduser --system --group postgres")
}

func (a account) attributes() *syscall.SysProcAttr {
	if !a.drop {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
}

// reaches reports whether the server's user may enter the folder, by letting
// a program of that user start in it.
func (a account) reaches(dir string) bool {
	cmd := exec.Command("/bin/true")
	cmd.Dir = dir
	cmd.SysProcAttr = a.attributes()
	return cmd.Run() == nil
}

// own makes a private folder of the server's user. A symbolic link in its place
// is refused: where the folder above belongs to that user already, it could
// otherwise have root give it any folder there is.
func (a account) own(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("devpg: %s must be a folder, and no link to one: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	if err := f.Chmod(0o700); err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	if a.drop {
		if err := f.Chown(a.uid, a.gid); err != nil {
			return fmt.Errorf("devpg: %w", err)
		}
	}
	return nil
}

// write writes a private file in a folder of the server's user, as that user:
// root would follow whatever links it put there.
func (a account) write(path, content string) error {
	if !a.drop {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return fmt.Errorf("devpg: %w", err)
		}
		return nil
	}
	cmd := exec.Command("/bin/sh", "-c", `umask 077 && cat >"$1"`, "sh", path)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = "/", environment(), a.attributes()
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("devpg: write %s as user id %d: %w\n%s", path, a.uid, err, out)
	}
	return nil
}

// lockDir keeps a second process away from the cluster for as long as the
// file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("devpg: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("devpg: %w: %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("devpg: lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// placeData returns the folder that holds "data": within dir, or where the
// server's user cannot reach that, the one that dir/location names.
func placeData(dir string, as account) (string, error) {
	link := filepath.Join(dir, "location")
	named, err := os.ReadFile(link)
	switch {
	case err == nil:
		home := strings.TrimSuffix(string(named), "\n")
		if !as.reaches(home) {
			return "", fmt.Errorf("devpg: %s names %s, which is not there or closed to PostgreSQL: restore it, or remove %s to begin anew", link, home, dir)
		}
		return home, nil
	case !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("devpg: %w", err)
	}

	home := filepath.Join(dir, "cluster")
	if err := as.own(home); err != nil {
		return "", err
	}
	if as.drop && !as.reaches(home) {
		// dir is ours to open for passing through; what is above it is not.
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", fmt.Errorf("devpg: %w", err)
		}
	}
	if as.reaches(home) {
		return home, nil
	}
	if !as.drop {
		return "", fmt.Errorf("devpg: cannot enter %s", home)
	}
	if _, err := os.Stat(filepath.Join(home, "data")); err == nil {
		return "", fmt.Errorf("devpg: the folders above %s are closed to the user PostgreSQL runs as (id %d): open them for passing through (chmod o+x)", home, as.uid)
	}
	if err := os.MkdirAll(openBase, 0o711); err != nil {
		return "", fmt.Errorf("devpg: %w", err)
	}
	away, err := os.MkdirTemp(openBase, "cluster-")
	if err != nil {
		return "", fmt.Errorf("devpg: %w", err)
	}
	if err := as.own(away); err != nil {
		os.Remove(away)
		return "", err
	}
	if !as.reaches(away) {
		os.Remove(away)
		return "", fmt.Errorf("devpg: neither %s nor %s can be reached by the user PostgreSQL runs as (id %d): choose a folder whose parents it may pass through", dir, openBase, as.uid)
	}
	if err := os.WriteFile(link, []byte(away+"\n"), 0o600); err != nil {
		os.Remove(away)
		return "", fmt.Errorf("devpg: %w", err)
	}
	return away, nil
}

func socketFile(dir string) string { return filepath.Join(dir, ".s.PGSQL."+port) }

// placeSocket returns the folder of the socket, and whether it is a temporary
// one that goes with the cluster.
func placeSocket(asked, home string, as account) (dir string, temporary bool, err error) {
	if asked != "" {
		if dir, err = filepath.Abs(asked); err != nil {
			return "", false, fmt.Errorf("devpg: %w", err)
		}
		if n := len(socketFile(dir)); n > maxSocketPath {
			return "", false, fmt.Errorf("devpg: the socket path %s has %d bytes; at most %d work", socketFile(dir), n, maxSocketPath)
		}
		return dir, false, as.own(dir)
	}
	dir = filepath.Join(home, "run")
	if len(socketFile(dir)) <= maxSocketPath {
		return dir, false, as.own(dir)
	}
	if dir, err = os.MkdirTemp("/tmp", "kluis-pg-"); err != nil {
		return "", false, fmt.Errorf("devpg: %w", err)
	}
	if err := as.own(dir); err != nil {
		os.Remove(dir)
		return "", false, err
	}
	return dir, true, nil
}

// initialise creates the cluster unless it is there. It appears whole or not
// at all: initdb works beside it and the result is renamed.
func initialise(ctx context.Context, b Binaries, home, data string, as account, noSync bool) error {
	version, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if err == nil {
		if got := strings.TrimSpace(string(version)); got != strconv.Itoa(b.major) {
			return fmt.Errorf("devpg: %s was made by PostgreSQL %s, but %s is %d: install PostgreSQL %s, or remove the folder to begin anew", data, got, b.Dir, b.major, got)
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("devpg: %w", err)
	}
	fresh := data + ".new"
	if err := os.RemoveAll(fresh); err != nil { // of an initdb that was cut short
		return fmt.Errorf("devpg: %w", err)
	}
	args := []string{"-D", fresh, "-U", Superuser, "--data-checksums", "--encoding=UTF8", "--locale=C", "--auth=peer", "-N"}
	cmd := exec.CommandContext(ctx, b.path("initdb"), args...)
	cmd.Dir = home
	cmd.Env = environment()
	cmd.SysProcAttr = as.attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(fresh)
		return fmt.Errorf("devpg: initdb: %w\n%s", err, out)
	}
	if !noSync {
		// initdb -N leaves the files to the page cache.
		cmd := exec.CommandContext(ctx, b.path("initdb"), "-S", "-D", fresh)
		cmd.Dir, cmd.Env, cmd.SysProcAttr = home, environment(), as.attributes()
		if out, err := cmd.CombinedOutput(); err != nil {
			os.RemoveAll(fresh)
			return fmt.Errorf("devpg: initdb -S: %w\n%s", err, out)
		}
	}
	if err := os.Rename(fresh, data); err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	return nil
}

// writeAccess writes who may log in: the caller's operating-system user over
// the socket, as the roles listed, and nobody else.
func writeAccess(data string, as account, osUser string, roles []string) error {
	var ident strings.Builder
	for _, name := range append([]string{Superuser}, roles...) {
		if strings.ContainsAny(osUser+name, "\"\n") {
			return fmt.Errorf("devpg: the user name %q or role name %q cannot be written to pg_ident.conf", osUser, name)
		}
		fmt.Fprintf(&ident, "kluis \"%s\" \"%s\"\n", osUser, name)
	}
	for name, content := range map[string]string{
		"pg_hba.conf":   "local all all peer map=kluis\n",
		"pg_ident.conf": ident.String(),
	} {
		if err := as.write(filepath.Join(data, name), content); err != nil {
			return err
		}
	}
	return nil
}

// clearStalePID waits for a server that is going down (its parent was killed a
// moment ago) and removes a postmaster.pid whose process id now belongs to
// something else, which PostgreSQL cannot tell from a live server. A file
// whose process is gone PostgreSQL recovers itself.
func clearStalePID(ctx context.Context, data string) error {
	path := filepath.Join(data, "postmaster.pid")
	for {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("devpg: %w", err)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || !alive(pid) {
			return nil
		}
		cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
		if err != nil || !sameFile(cwd, data) {
			if !alive(pid) {
				return nil
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("devpg: %w", err)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("devpg: %w: process %d runs %s: %w", ErrInUse, pid, data, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
