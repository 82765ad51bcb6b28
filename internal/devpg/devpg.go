// Package devpg runs a private PostgreSQL for development, demonstrations and
// tests, from the machine's own binaries.
//
// The cluster listens on a Unix socket only, in a folder nobody else may
// enter, and lets in nobody but the operating-system user who started it
// (peer authentication), under any of the configured roles. Its data is
// durable (fsync, synchronous_commit, data checksums) unless NoSync says
// otherwise. It dies with the process that started it.
//
// PostgreSQL refuses to run as root, so root's cluster runs as the user
// "postgres", or "nobody" where that does not exist. That user must be able to
// reach the data: where Dir lies under a folder closed to it (root's home, a
// state folder of mode 0700), the data goes to a folder of its own under
// /var/lib/kluis and Dir keeps a file "location" that names it; removing Dir
// does not remove that folder. A state folder of mode 0711 keeps all in one
// place. A socket path
// is at most 107 bytes, so where Dir is too long for that, or closed, the
// socket goes to a private folder under /tmp.
//
// It is not meant for production.
package devpg

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lib/pq"
)

// Superuser is the role that owns the cluster. It is there to create roles
// and databases; no part of Kluis serves under it.
const Superuser = "postgres"

// ErrInUse says that another process runs the cluster of this folder.
var ErrInUse = errors.New("the cluster is in use by another process")

const (
	port          = "5432" // only names the socket file; nothing listens on TCP
	maxSocketPath = 107    // sun_path of unix(7), less the closing zero
	logName       = "postgres.log"
	openBase      = "/var/lib/kluis" // root's data where Dir is closed to the server's user
)

// Config says where a cluster lives and how it behaves.
type Config struct {
	// Dir holds the cluster. It is created when missing, resumed when not.
	Dir string
	// Socket is the folder of the socket; empty: chosen, see the package.
	Socket string
	// BinDir is the folder of initdb and postgres; empty: the newest found.
	BinDir string
	// Roles are those that the calling user may log in as, besides Superuser.
	Roles []string
	// NoSync trades durability for speed. For tests.
	NoSync bool
	// MaxConnections is PostgreSQL's limit; 0: 200.
	MaxConnections int
	// SharedBuffers is PostgreSQL's own cache ("4GB"); empty: 64MB.
	SharedBuffers string
}

// Cluster is a running PostgreSQL.
type Cluster struct {
	binaries  Binaries
	data      string
	socket    string
	ownSocket bool // made for this run, removed by Stop
	lock      *os.File
	cmd       *exec.Cmd
	exited    chan struct{} // closed when the postmaster is gone
	exitErr   error         // valid once exited is closed

	release sync.Once
}

// Start creates or resumes the cluster of c.Dir and returns when it accepts
// connections. ctx bounds the start only: end the cluster with Stop. An error
// leaves nothing running.
func Start(ctx context.Context, c Config) (_ *Cluster, err error) {
	if c.Dir == "" {
		return nil, errors.New("devpg: Dir is empty")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("devpg: %w", err)
	}
	me, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil {
		return nil, fmt.Errorf("devpg: the user id %d has no name, which PostgreSQL needs to tell who connects: add it to /etc/passwd: %w", os.Getuid(), err)
	}
	bins, err := FindBinaries(c.BinDir)
	if err != nil {
		return nil, err
	}
	as, err := serverUser()
	if err != nil {
		return nil, err
	}

	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("devpg: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	cl := &Cluster{binaries: bins, lock: lock, exited: make(chan struct{})}
	defer func() {
		if err != nil {
			cl.cleanUp()
		}
	}()

	home, err := placeData(dir, as)
	if err != nil {
		return nil, err
	}
	cl.data = filepath.Join(home, "data")
	if cl.socket, cl.ownSocket, err = placeSocket(c.Socket, home, as); err != nil {
		return nil, err
	}
	if err := initialise(ctx, bins, home, cl.data, as, c.NoSync); err != nil {
		return nil, err
	}
	if err := writeAccess(cl.data, as, me.Username, c.Roles); err != nil {
		return nil, err
	}
	if err := clearStalePID(ctx, cl.data); err != nil {
		return nil, err
	}

	logFile, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("devpg: %w", err)
	}
	defer logFile.Close()

	cl.cmd = exec.Command(bins.path("postgres"), arguments(cl, c)...)
	cl.cmd.Dir = cl.data
	cl.cmd.Env = environment()
	cl.cmd.Stdout, cl.cmd.Stderr = logFile, logFile
	cl.cmd.SysProcAttr = as.attributes()
	cl.cmd.SysProcAttr.Setpgid = true // an interrupt at the terminal is for us to pass on
	cl.cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	if err := cl.launch(); err != nil {
		return nil, fmt.Errorf("devpg: start %s: %w", cl.cmd.Path, err)
	}
	if err := cl.awaitReady(ctx, filepath.Join(dir, logName)); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, errors.Join(err, cl.Stop(stop))
	}
	return cl, nil
}

// launch starts the postmaster and waits for it on one locked thread: the
// kernel sends Pdeathsig when the thread that forked ends, not the process,
// so that thread must live as long as the child.
func (c *Cluster) launch() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := c.cmd.Start(); err != nil {
			c.exitErr = err
			close(c.exited)
			started <- err
			return
		}
		started <- nil
		c.exitErr = c.cmd.Wait()
		close(c.exited)
	}()
	return <-started
}

// URL is the connection string of lib/pq and psql for a role and a database.
func (c *Cluster) URL(role, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.User(role),
		Path:     "/" + database,
		RawQuery: url.Values{"host": {c.socket}, "port": {port}, "sslmode": {"disable"}}.Encode(),
	}
	return u.String()
}

// Socket is the path of the Unix socket.
func (c *Cluster) Socket() string { return socketFile(c.socket) }

// PID is the process id of the postmaster.
func (c *Cluster) PID() int { return c.cmd.Process.Pid }

// Version is what "postgres --version" says.
func (c *Cluster) Version() string { return c.binaries.Version }

// Exited is closed when the cluster is gone, by Stop or by itself.
func (c *Cluster) Exited() <-chan struct{} { return c.exited }

// EnsureDatabase creates a database of the owner's unless it exists.
func (c *Cluster) EnsureDatabase(ctx context.Context, name, owner string) error {
	db, err := sql.Open("postgres", c.URL(Superuser, "postgres"))
	if err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	defer db.Close()
	var exists bool
	if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists); err != nil {
		return fmt.Errorf("devpg: look for database %q: %w", name, err)
	}
	if exists {
		return nil
	}
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name)+" OWNER "+pq.QuoteIdentifier(owner)); err != nil {
		return fmt.Errorf("devpg: create database %q: %w", name, err)
	}
	return nil
}

// Stop shuts the cluster down: fast (sessions are broken off, everything
// committed is written), and when ctx ends first, at once (the next start
// recovers from the write-ahead log). It returns when the cluster is gone, and
// may be called again.
func (c *Cluster) Stop(ctx context.Context) error {
	defer c.cleanUp()
	var forced error
	for _, s := range []struct {
		sig  syscall.Signal
		wait <-chan struct{}
	}{
		{syscall.SIGINT, ctx.Done()},
		{syscall.SIGQUIT, after(3 * time.Second)},
	} {
		if err := c.cmd.Process.Signal(s.sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			forced = fmt.Errorf("devpg: %w", err)
		}
		select {
		case <-c.exited:
			return nil
		case <-s.wait:
		}
	}
	// The whole group: backends whose postmaster is killed linger for a moment.
	if err := syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return errors.Join(forced, fmt.Errorf("devpg: PostgreSQL (process %d) does not stop: %w", c.cmd.Process.Pid, err))
	}
	<-c.exited
	return nil
}

func after(d time.Duration) <-chan struct{} {
	ch := make(chan struct{})
	time.AfterFunc(d, func() { close(ch) })
	return ch
}

// cleanUp gives back what is not the data.
func (c *Cluster) cleanUp() {
	c.release.Do(func() {
		if c.ownSocket {
			os.RemoveAll(c.socket)
		}
		c.lock.Close() // releases the lock
	})
}

// awaitReady connects until it is let in, for two minutes at most: a recovery
// takes its time.
func (c *Cluster) awaitReady(ctx context.Context, logPath string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	db, err := sql.Open("postgres", c.URL(Superuser, "postgres"))
	if err != nil {
		return fmt.Errorf("devpg: %w", err)
	}
	defer db.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		var refused *pq.Error
		if errors.As(err, &refused) && refused.Code.Class() == "28" {
			return fmt.Errorf("devpg: PostgreSQL does not let this user in: %w%s", err, logTail(logPath))
		}
		select {
		case <-c.exited:
			return fmt.Errorf("devpg: PostgreSQL did not start: %w%s", exitError(c.exitErr), logTail(logPath))
		case <-ctx.Done():
			return fmt.Errorf("devpg: PostgreSQL was not ready in time: %w (%v)%s", ctx.Err(), last, logTail(logPath))
		case <-tick.C:
		}
	}
}

func exitError(err error) error {
	if err == nil {
		return errors.New("it ended by itself")
	}
	return err
}

// logTail quotes the end of the server's log. It holds no data: statements,
// parameters and details are not logged (see arguments).
func logTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 2000 {
		if _, err := f.Seek(-2000, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(f)
	if err != nil || len(b) == 0 {
		return ""
	}
	return "\nits log, " + path + ", ends with:\n" + string(bytes.TrimSpace(b))
}

func arguments(c *Cluster, cfg Config) []string {
	max := cfg.MaxConnections
	if max == 0 {
		max = 200
	}
	onOff := "on"
	if cfg.NoSync {
		onOff = "off"
	}
	set := []string{
		"listen_addresses=",
		"port=" + port,
		"unix_socket_directories=" + quoteSetting(c.socket),
		"unix_socket_permissions=0700",
		"max_connections=" + strconv.Itoa(max),
		"shared_buffers=" + cmp.Or(cfg.SharedBuffers, "64MB"),
		"fsync=" + onOff,
		"full_page_writes=" + onOff,
		"synchronous_commit=on",
		"password_encryption=scram-sha-256",
		"timezone=UTC",
		"log_timezone=UTC",
		// Statements, their parameters and error details hold EANs.
		"log_statement=none",
		"log_min_error_statement=panic",
		"log_error_verbosity=terse",
		"log_parameter_max_length=0",
		"log_parameter_max_length_on_error=0",
		"logging_collector=off",
	}
	args := []string{"-D", c.data}
	for _, s := range set {
		args = append(args, "-c", s)
	}
	return args
}

// quoteSetting quotes one element of a list-valued setting.
func quoteSetting(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// environment is small and the same everywhere: PG* variables of the caller
// must not reach the server.
func environment() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
}
