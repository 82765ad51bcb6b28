package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
)

// ReadSecret reads a PIN or a password: one line, without its end of line.
// A file that its group or others can access is refused with the command that
// mends it. The caller may clear the returned bytes after use.
func ReadSecret(path string) ([]byte, error) {
	raw, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r"))
	if len(line) == 0 || bytes.ContainsAny(line, "\r\n\x00") {
		clear(raw)
		return nil, fmt.Errorf("%s must hold the secret on its one line", path)
	}
	return line, nil
}

// maxCursorKeys bounds the keys of a file of cursor keys.
const maxCursorKeys = 8

// CursorKeys reads the keys that cursors are sealed with: one to eight lines of
// 64 hexadecimal digits, no key twice. The first one seals, all open.
func CursorKeys(path string) ([][32]byte, error) {
	raw, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	var keys [][32]byte
	for line := range bytes.SplitSeq(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n")) {
		var k [32]byte
		n, err := 0, error(nil)
		if len(line) == hex.EncodedLen(len(k)) {
			n, err = hex.Decode(k[:], line)
		}
		switch { // never the text itself
		case n != len(k) || err != nil:
			return nil, fmt.Errorf("line %d of %s is no key: write 64 hexadecimal digits, from openssl rand -hex 32", len(keys)+1, path)
		case k == [32]byte{} || slices.Contains(keys, k):
			return nil, fmt.Errorf("line %d of %s is all zeros, or a key that is there already", len(keys)+1, path)
		case len(keys) == maxCursorKeys:
			return nil, fmt.Errorf("%s has more than %d keys: those that nothing was sealed with for a week can go", path, maxCursorKeys)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func readPrivate(path string) ([]byte, error) {
	raw, mode, err := readFileMode(path)
	if err != nil {
		return nil, err
	}
	if err := ownerOnly(path, mode); err != nil {
		clear(raw)
		return nil, err
	}
	return raw, nil
}

func ownerOnly(path string, mode os.FileMode) error {
	if mode.Perm()&0o077 != 0 {
		return fmt.Errorf("%s holds a secret but has mode %#o; run: chmod 600 '%s'",
			path, mode.Perm(), strings.ReplaceAll(path, "'", `'\''`))
	}
	return nil
}

// DSN completes a database URL (postgres://role@host:port/name?...) with the
// password in passwordFile ("" for none: peer or certificate authentication)
// and an explicit sslmode: disable on a Unix socket, else verify-full. Over
// TCP to another machine nothing weaker than verify-ca is accepted. The result
// may hold the password: never log it.
func DSN(databaseURL, passwordFile string) (string, error) {
	u, err := parseDatabaseURL(databaseURL)
	if err != nil {
		return "", err
	}
	if passwordFile != "" {
		pw, err := ReadSecret(passwordFile)
		if err != nil {
			return "", fmt.Errorf("database password: %w", err)
		}
		u.User = url.UserPassword(u.User.Username(), string(pw))
		clear(pw)
	}
	return u.String(), nil
}

// parseDatabaseURL never echoes the URL: it may hold a password by mistake.
func parseDatabaseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || u.Opaque != "" || u.Fragment != "" {
		return nil, errors.New("not a database URL: write postgres://role@host:port/database (several hosts: postgres://role@/database?host=a,b)")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("the database URL's query cannot be read")
	}
	for k, v := range q {
		if len(v) != 1 {
			return nil, fmt.Errorf("parameter %q of the database URL is repeated", k)
		}
	}
	if _, has := u.User.Password(); has || q.Has("password") {
		return nil, errors.New("the database URL holds a password: put it into a file of mode 600 and name that in the key for the password file")
	}
	// lib/pq reads the user from either place.
	if user := q.Get("user"); user != "" && u.User.Username() == "" {
		u.User = url.User(user)
		q.Del("user")
	}
	if u.User.Username() == "" || q.Has("user") {
		return nil, errors.New("the database URL must name the role once: postgres://role@host:port/database")
	}
	if strings.Trim(u.Path, "/") == "" && q.Get("dbname") == "" {
		return nil, errors.New("the database URL must name the database: postgres://role@host:port/database")
	}

	socket, local := true, true
	hosts := q.Get("host")
	if u.Host != "" {
		if hosts != "" {
			return nil, errors.New("the database URL names its host twice")
		}
		hosts = u.Hostname()
	}
	if hosts == "" && q.Get("hostaddr") == "" {
		return nil, errors.New("the database URL must name a host or a socket folder (?host=/run/postgresql)")
	}
	for _, h := range strings.Split(hosts+","+q.Get("hostaddr"), ",") {
		if h == "" {
			continue
		}
		ip := net.ParseIP(h)
		isSocket := strings.HasPrefix(h, "/")
		socket = socket && isSocket
		local = local && (isSocket || h == "localhost" || ip != nil && ip.IsLoopback())
	}
	switch mode := q.Get("sslmode"); mode {
	case "":
		if socket {
			q.Set("sslmode", "disable")
		} else {
			q.Set("sslmode", "verify-full")
		}
	case "verify-full", "verify-ca":
	case "disable", "require":
		if !local {
			return nil, fmt.Errorf("sslmode=%s does not authenticate a database on another machine: use sslmode=verify-full and sslrootcert", mode)
		}
	default:
		return nil, errors.New("sslmode of the database URL must be verify-full or verify-ca (disable or require on this machine only)")
	}
	u.RawQuery = q.Encode()
	return u, nil
}
