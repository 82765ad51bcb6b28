package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/pkcs11"
)

const (
	// spareSessions a token needs beside its workers': the holder's, two to
	// look up keys, and some for workers and connections being replaced.
	spareSessions = 8
	// checkedKeys is the default of key_cache.size.
	checkedKeys = 4096
	// leaking is from how many bytes per operation on a module leaks: beyond
	// what the growth of our own heap can look like.
	leaking = 100
	// keptAtMost is how many bytes of destroyed keys may gather until the module is
	// ended for them.
	keptAtMost = 10 << 20
	// inProcess is the share of the host's time that one worker uses from which
	// on the token is taken for software in this process.
	inProcess = 0.25
)

func (c *checker) tryShared() (finding, error) {
	key, err := c.dataKey(c.session, RoleOpen)
	if err != nil {
		return finding{}, err
	}
	if err := c.opens(c.s, key); err != nil {
		return finding{}, fmt.Errorf("from another session: %w", err)
	}
	return finding{found: "a session key of one session serves another"}, nil
}

func (c *checker) tryEnd() (finding, error) {
	var other pkcs11.SessionHandle
	if err := c.in("C_OpenSession", func() (err error) { other, err = c.login.open(); return err }); err != nil {
		return finding{}, err
	}
	key, err := c.dataKey(other, RoleOpen)
	if closed := c.in("C_CloseSession", func() error { return c.raw.CloseSession(other) }); err == nil {
		err = closed
	}
	if err != nil {
		return finding{}, err
	}
	err = c.opens(c.s, key)
	var rv pkcs11.Error
	switch {
	case err == nil:
		return finding{result: CheckLimited, found: "a data key can be used after its session was closed",
			means: "Kluis destroys the data keys that fall out of its cache; those of a process that crashed stay until the token forgets them."}, nil
	case !errors.As(err, &rv):
		return finding{}, err
	case classifyRV(uint(rv)) == classDown:
		return finding{result: CheckLimited, found: rvName(uint(rv)), means: "Kluis takes this answer for a broken token, so a lost session costs a restart of the connection."}, nil
	}
	return finding{found: "gone: " + rvName(uint(rv))}, nil
}

func (c *checker) trySessions() (finding, error) {
	var open []pkcs11.SessionHandle
	const want = MaxWorkers + spareSessions
	var refused error
	for len(open) < want && refused == nil {
		err := c.in("C_OpenSession", func() error {
			s, err := c.login.open()
			if err == nil {
				open = append(open, s)
			}
			return err
		})
		var rv pkcs11.Error
		switch {
		case errors.As(err, &rv):
			refused = err
		case err != nil:
			return finding{}, err
		}
	}
	if err := c.in("C_CloseSession", func() error {
		var errs []error
		for _, s := range open {
			errs = append(errs, c.raw.CloseSession(s))
		}
		return firstError(errs...)
	}); err != nil {
		return finding{}, err
	}
	c.sessions = len(open)
	f := finding{found: fmt.Sprintf("%d more can be open at a time", len(open)), figures: map[string]float64{"sessions": float64(len(open))}}
	if refused != nil {
		f.found = fmt.Sprintf("%d more can be open at a time, then %s", len(open), ckr(refused))
		f.result, f.means = CheckLimited, fmt.Sprintf("At most %d workers.", max(len(open)-spareSessions, 0))
		if len(open) <= spareSessions {
			f.result, f.means = CheckFail, "Too few for one worker."
		}
	}
	return f, nil
}

func (c *checker) tryDataKeys() (finding, error) {
	n := 0
	var limit error
	start := time.Now()
	for n < checkedKeys && limit == nil {
		keys, err := c.dataKeys(c.s, RoleOpen, chunk)
		n += len(keys)
		var rv pkcs11.Error
		switch {
		case errors.As(err, &rv):
			limit = err
		case err != nil:
			return finding{}, err
		}
	}
	took := time.Since(start)
	// Their session takes them along; then there must be room again.
	s := c.s
	if err := c.in("C_CloseSession", func() (err error) {
		if err := c.raw.CloseSession(s); err != nil {
			return err
		}
		c.s, err = c.login.open()
		return err
	}); err != nil {
		return finding{}, err
	}
	if _, err := c.dataKeys(c.s, RoleOpen, min(n, chunk)); err != nil {
		return finding{}, fmt.Errorf("after %d data keys and the end of their session: %w", n, err)
	}
	f := finding{figures: map[string]float64{"data_keys": float64(n), "unwraps_per_second": float64(n) / took.Seconds()}}
	if limit == nil {
		c.cache = checkedKeys
		f.found = fmt.Sprintf("%d data keys at a time; the limit, if any, lies beyond", n)
		return f, nil
	}
	// Room for the keys of batches while the cache is full.
	c.cache = n / 2
	var rv pkcs11.Error
	errors.As(limit, &rv)
	f.found = fmt.Sprintf("%d data keys at a time, then %s", n, ckr(limit))
	f.result, f.means = CheckLimited, fmt.Sprintf("key_cache.size must be %d at most, so that batches have room for keys of their own.", c.cache)
	if classifyRV(uint(rv)) == classDown {
		f.means += " Beyond the limit Kluis takes the token for broken and opens it anew."
	}
	if n < 2*chunk {
		f.result, f.means = CheckFail, "Too few for one batch."
	}
	return f, nil
}

// timed are the durations of an operation, sorted.
func timed(n int, f func() error) ([]time.Duration, error) {
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took, nil
}

func (c *checker) tryLatency() (finding, error) {
	key, err := c.dataKey(c.s, RoleOpen)
	if err != nil {
		return finding{}, err
	}
	rounds := 200
	if c.Quick {
		rounds = 50
	}
	one := c.decrypts(key, 1)
	batch := c.decrypts(key, chunk)
	digest := make([]byte, 32)
	signature := make([]byte, signatureSize)
	f := finding{figures: map[string]float64{}}
	var said []string
	var slowest time.Duration
	for _, op := range []struct {
		id, name string
		able     bool
		run      func() error
	}{
		{"decrypt", "decrypt", true, func() error { return one(c.s) }},
		{"decrypt_64", "64 decrypts in one call", true, func() error { return batch(c.s) }},
		{"unwrap", "unwrap and destroy", true, func() error {
			keys, err := c.dataKeys(c.s, RoleOpen, 1)
			if err != nil {
				return err
			}
			return c.in("C_DestroyObject", func() error { return named("C_DestroyObject", c.shim.destroy(c.s, keys)) })
		}},
		{"mint", "mint", c.keks[RoleMint] != 0, func() error { _, err := c.mints(); return err }},
		{"sign", "sign", c.signing != 0, func() error {
			return c.in("C_Sign", func() error {
				return c.shim.sign(c.s, pkcs11.CKM_ECDSA, c.signing, []macItem{{data_len: 32}}, digest, signature, signatureSize)
			})
		}},
	} {
		if !op.able {
			continue
		}
		took, err := timed(rounds, op.run)
		if err != nil {
			return finding{}, fmt.Errorf("%s: %w", op.name, err)
		}
		median, late := took[rounds/2], took[rounds*99/100]
		f.figures[op.id+"_median_us"], f.figures[op.id+"_p99_us"] = microseconds(median), microseconds(late)
		said = append(said, fmt.Sprintf("%s %s (p99 %s)", op.name, rounded(median), rounded(late)))
		if op.id == "decrypt_64" {
			slowest = max(slowest, late)
		} else {
			slowest = max(slowest, chunk*late) // as in one call
		}
	}
	f.found = strings.Join(said, ", ")
	if slowest > DefaultCallTimeout/4 {
		f.result = CheckLimited
		f.means = fmt.Sprintf("64 operations in one call may take %s; at call_timeout (%s) a worker is given up.", rounded(slowest), DefaultCallTimeout)
	}
	return f, nil
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()/100) / 10 }

func rounded(d time.Duration) time.Duration {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= 10*unit {
			return d.Round(unit)
		}
		if d >= unit {
			return d.Round(unit / 10)
		}
	}
	return d
}

// decrypts gives an operation that opens n blocks of 64 bytes in one crossing,
// for one session at a time.
func (c *checker) decrypts(key pkcs11.ObjectHandle, n int) func(pkcs11.SessionHandle) error {
	in := slices.Concat(c.probe.iv[:], []byte(probeAAD), c.probe.ciphertext[:])
	out := make([]byte, n*len(c.probe.ciphertext))
	items := make([]gcmItem, n)
	return func(s pkcs11.SessionHandle) error {
		if !c.vector {
			return errNoVector
		}
		for i := range items {
			items[i] = gcmItem{key: cUint64(key), rv: notRun, aad: ivSize, aad_len: cUint32(len(probeAAD)), data: cUint32(ivSize + len(probeAAD)),
				data_len: cUint32(len(c.probe.ciphertext)), out: cUint32(i * len(c.probe.ciphertext)), out_len: cUint32(len(c.probe.ciphertext))}
		}
		return c.in("C_Decrypt with CKM_AES_GCM", func() error {
			c.shim.gcm(s, false, items, in, out)
			for i := range items {
				if items[i].rv != 0 {
					return named("C_Decrypt with CKM_AES_GCM", pkcs11.Error(items[i].rv))
				}
			}
			if !bytes.Equal(out[:len(probePlaintext)], []byte(probePlaintext)) {
				return errors.New("a known ciphertext comes out otherwise")
			}
			return nil
		})
	}
}

func (c *checker) tryScaling() (finding, error) {
	key, err := c.dataKey(c.session, RoleOpen)
	if err != nil {
		return finding{}, err
	}
	f := finding{figures: map[string]float64{}}
	var said []string
	var rates, costs []float64
	sizes := []int{1, 2, 4, 8}
	for _, n := range sizes {
		if c.sessions > 0 && n > c.sessions-spareSessions && n > 1 {
			break
		}
		rate, cost, err := c.rate(key, n)
		if err != nil {
			return finding{}, err
		}
		rates, costs = append(rates, rate), append(costs, cost)
		f.figures[fmt.Sprintf("decrypts_per_second_%d", n)] = float64(int(rate))
		f.figures[fmt.Sprintf("host_cpu_us_per_decrypt_%d", n)] = float64(int(10*cost)) / 10
		said = append(said, fmt.Sprintf("%d: %.0f/s at %.1f µs of the host", n, rate, cost))
	}
	f.found = "decrypts by workers: " + strings.Join(said, ", ")
	// A worker that keeps the host busy while it waits for the token has the
	// token in this process: others would take the host's time from each other.
	software := rates[0]*costs[0] > inProcess*1e6
	best := 0
	for best+1 < len(rates) && !software && rates[best+1] >= 1.5*rates[best] {
		best++
	}
	c.workers = sizes[best]
	if len(rates) > 1 {
		c.quirk("one-engine", best == 0)
	}
	f.means = fmt.Sprintf("workers: %d", c.workers)
	switch {
	case software:
		f.found += "; the token computes on the host's own cores"
		f.means += "; rather run a second cryptoserver than a second worker"
	case best == len(sizes)-1:
		f.means += " or more: it still grows"
	}
	return f, nil
}

// rate is how many blocks a second n workers decrypt, and what each costs the
// host in microseconds.
func (c *checker) rate(key pkcs11.ObjectHandle, n int) (rate, cost float64, err error) {
	var sessions []pkcs11.SessionHandle
	closed := func() error {
		return c.in("C_CloseSession", func() error {
			var errs []error
			for _, s := range sessions {
				errs = append(errs, c.raw.CloseSession(s))
			}
			return firstError(errs...)
		})
	}
	if err := c.in("C_OpenSession", func() error {
		for len(sessions) < n {
			s, err := c.login.open()
			if err != nil {
				return err
			}
			sessions = append(sessions, s)
		}
		return nil
	}); err != nil {
		return 0, 0, firstError(err, closed())
	}
	var blocks atomic.Int64
	errs := make([]error, n)
	var wg sync.WaitGroup
	before, err := cpuTime()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	for i, s := range sessions {
		decrypt := c.decrypts(key, chunk)
		wg.Go(func() {
			for time.Since(start) < c.limits.measure && errs[i] == nil {
				if errs[i] = decrypt(s); errs[i] == nil {
					blocks.Add(chunk)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	after, err := cpuTime()
	n = max(int(blocks.Load()), 1)
	return float64(n) / took.Seconds(), float64((after - before).Microseconds()) / float64(n), firstError(append(errs, err, closed())...)
}

// cpuTime is what this process has used of the host.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

func (c *checker) tryMemory() (finding, error) {
	key, err := c.dataKey(c.session, RoleOpen)
	if err != nil {
		return finding{}, err
	}
	decrypt := c.decrypts(key, chunk)
	f := finding{figures: map[string]float64{}}
	var said []string
	for _, op := range []struct {
		id, name string
		run      func() error
	}{
		{"decrypt", "decrypted block", func() error { return decrypt(c.s) }},
		{"unwrap", "unwrapped and destroyed key", func() error {
			keys, err := c.dataKeys(c.s, RoleOpen, chunk)
			if err != nil {
				return err
			}
			return c.in("C_DestroyObject", func() error { return named("C_DestroyObject", c.shim.destroy(c.s, keys)) })
		}},
	} {
		grown, err := c.growth(op.run)
		if err != nil {
			return finding{}, err
		}
		f.figures["bytes_per_"+op.id] = float64(int(grown))
		said = append(said, fmt.Sprintf("%.0f bytes per %s", max(grown, 0), op.name))
		if op.id == "unwrap" {
			c.quirk("leaks", grown > leaking)
			if grown > leaking {
				c.renewAfter = max(int(keptAtMost/grown)/1000, 1) * 1000
			}
		}
		if grown > leaking {
			f.result = CheckLimited
			f.means = fmt.Sprintf("Every million of them adds about %.0f MB to the process, until the module is ended.", grown)
		}
	}
	f.found = "grows by " + strings.Join(said, ", ")
	return f, nil
}

// growth is by how many bytes the process grows with each operation.
func (c *checker) growth(run func() error) (float64, error) {
	n := 0
	several := func(rounds int) error {
		// A slow HSM is given half a minute.
		for start := time.Now(); n < rounds && time.Since(start) < 30*time.Second; n += chunk {
			if err := run(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := several(c.limits.rounds / 5); err != nil { // what grows once
		return 0, err
	}
	before, err := resident()
	if err != nil {
		return 0, err
	}
	n = 0
	if err := several(c.limits.rounds); err != nil {
		return 0, err
	}
	after, err := resident()
	return float64(after-before) / float64(max(n, 1)), err
}

// resident is the memory of this process in bytes, without what Go can return.
func resident() (int64, error) {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %w", err)
	}
	return pages * int64(os.Getpagesize()), nil
}

// tryLogout is the last but what needs a login of its own: it ends every
// session object.
func (c *checker) tryLogout() (finding, error) {
	public, err := c.dataKey(c.session, RoleOpen)
	if err != nil {
		return finding{}, err
	}
	var private pkcs11.ObjectHandle
	if err := c.in("C_UnwrapKey", func() (err error) {
		private, err = c.raw.UnwrapKey(c.session, mechanism(pkcs11.CKM_AES_KEY_WRAP), c.keks[RoleOpen], c.probe.wrapped[:],
			replace(unwrapping(RoleOpen), attribute(pkcs11.CKA_PRIVATE, true)))
		return named("C_UnwrapKey", err)
	}); err != nil {
		return finding{}, err
	}
	for _, key := range []pkcs11.ObjectHandle{public, private} {
		if err := c.opens(c.s, key); err != nil {
			return finding{}, err
		}
	}
	if err := c.in("C_Logout", func() error { return named("C_Logout", c.raw.Logout(c.session)) }); err != nil {
		return finding{}, err
	}
	// In this order: an answer to a key that is gone ends the operation.
	publicOut, privateOut := c.opens(c.s, public), c.opens(c.s, private)
	if err := c.in("C_Login", func() error {
		pin, err := readPIN(c.Token.PINFile)
		if err != nil {
			return err
		}
		return c.login.present(pin)
	}); err != nil {
		return finding{}, err
	}
	privateIn := c.opens(c.s, private)
	// What was there before is gone, or may have other handles.
	c.keks, c.known, c.source, c.pair = map[Role]pkcs11.ObjectHandle{}, nil, nil, nil
	if errors.Is(privateIn, errAbandoned) {
		return finding{}, privateIn
	}
	if privateOut == nil || privateIn == nil {
		return finding{result: CheckLimited, found: "a private data key serves after the logout",
			means: "It still ends with its session, which Kluis closes, and no other process sees it."}, nil
	}
	found := "a private data key is gone: " + ckr(privateOut)
	if publicOut == nil {
		found += "; one with CKA_PRIVATE=false, as Kluis makes them, serves until its session is closed"
	}
	return finding{found: found}, nil
}
