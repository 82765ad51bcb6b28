package hsm

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// module is a PKCS#11 module of this process. C_Initialize and C_Finalize act
// on the whole process, so there is one module per path and it decides when
// they are called.
//
// crypto11 initialises with its first context and finalises with its last,
// and cannot join a module that somebody else initialised. So every token we
// serve from has a crypto11 context, which is opened before and closed after
// our own sessions. Where there is no token to open a context on yet (a key
// ceremony initialising tokens), bare initialises by itself, alone.
//
// The library stays loaded until the process ends: modules do not survive
// being unloaded and loaded again.
type module struct {
	path string
	raw  *pkcs11.Ctx // management calls; never initialised by itself but in bare
	shim shim

	initialising sync.Mutex // of tokens, one at a time

	mu       sync.Mutex
	changed  sync.Cond
	contexts int  // open crypto11 contexts, and those being opened
	moving   int  // contexts being opened or closed
	alone    bool // bare initialised the module and is still running
	guests   int  // bare runs on crypto11's initialisation
}

var modules = struct {
	sync.Mutex
	byPath map[string]*module
}{byPath: map[string]*module{}}

func loadModule(path string) (*module, error) {
	modules.Lock()
	defer modules.Unlock()
	if m, ok := modules.byPath[path]; ok {
		return m, nil
	}
	s, err := loadShim(path)
	if err != nil {
		return nil, err
	}
	raw := pkcs11.New(path)
	if raw == nil {
		return nil, fmt.Errorf("PKCS#11 module %s cannot be loaded", path)
	}
	m := &module{path: path, raw: raw, shim: s}
	m.changed.L = &m.mu
	modules.byPath[path] = m
	return m, nil
}

// context opens a crypto11 context on the token of this label. It does not log
// in: whoever presents a PIN must see what exactly the token answers, and
// crypto11 would keep the PIN. No lock is held during the call: it may hang.
func (m *module) context(label string) (*crypto11.Context, error) {
	m.mu.Lock()
	for m.alone {
		m.changed.Wait()
	}
	m.contexts++
	m.moving++
	m.mu.Unlock()
	c, err := listing(func() (*crypto11.Context, error) {
		return crypto11.Configure(&crypto11.Config{
			Path:              m.path,
			TokenLabel:        label,
			LoginNotSupported: true,
			MaxSessions:       2, // to look up keys; operations use our own
			PoolWaitTimeout:   5 * time.Second,
		})
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moving--
	if err != nil {
		m.contexts--
	}
	m.changed.Broadcast()
	return c, err
}

func (m *module) closeContext(c *crypto11.Context) {
	m.mu.Lock()
	for m.contexts == 1 && m.guests > 0 {
		m.changed.Wait()
	}
	m.contexts--
	m.moving++
	m.mu.Unlock()
	_ = c.Close() // always nil
	m.mu.Lock()
	m.moving--
	m.changed.Broadcast()
	m.mu.Unlock()
}

// ended says whether the module is finalised and has nothing of this process.
func (m *module) ended() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.contexts == 0 && m.moving == 0 && !m.alone
}

// bare runs f with the module initialised but no token assumed.
func (m *module) bare(f func() error) error {
	m.mu.Lock()
	for m.alone || m.moving > 0 {
		m.changed.Wait()
	}
	own := m.contexts == 0
	if own {
		if err := m.raw.Initialize(); err != nil {
			m.mu.Unlock()
			return fmt.Errorf("PKCS#11 module %s does not initialise: %w", m.path, err)
		}
		m.alone = true
	} else {
		m.guests++
	}
	m.mu.Unlock()

	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if own {
			_ = m.raw.Finalize()
			m.alone = false
		} else {
			m.guests--
		}
		m.changed.Broadcast()
	}()
	return f()
}

// listing does what lists slots. The module is asked how many there are and then
// which: where a token was made between the two, by this process or another, the
// room is too small, and both are asked again.
func listing[T any](f func() (T, error)) (T, error) {
	const most = 5
	for i := 1; ; i++ {
		v, err := f()
		var rv pkcs11.Error
		if i == most || !errors.As(err, &rv) || rv != pkcs11.CKR_BUFFER_TOO_SMALL {
			return v, err
		}
	}
}

func (m *module) slots() ([]uint, error) {
	return listing(func() ([]uint, error) { return m.raw.GetSlotList(true) })
}

// findSlots lists the slots whose token has this label.
func (m *module) findSlots(label string) ([]uint, error) {
	slots, err := m.slots()
	if err != nil {
		return nil, fmt.Errorf("listing slots: %w", err)
	}
	var found []uint
	for _, s := range slots {
		info, err := m.raw.GetTokenInfo(s)
		if err != nil {
			return nil, fmt.Errorf("reading token of slot %d: %w", s, err)
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 && info.Label == label {
			found = append(found, s)
		}
	}
	return found, nil
}
