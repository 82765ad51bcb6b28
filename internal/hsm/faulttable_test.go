package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

var update = flag.Bool("update", false, "write docs/HSM-FAULTS.md anew")

// faultClass is a column of the fault table.
type faultClass struct {
	name string
	kind int
	arg  int32
}

// patience is how long a call may take in the fault table before it is stuck;
// on a loaded machine 18 calls of the module in one crossing take their time.
const patience = 1500 * time.Millisecond

func faultClasses() []faultClass {
	rv := func(name string, code uint) faultClass { return faultClass{name, faultReturn, int32(code)} }
	return []faultClass{
		rv("general error", pkcs11.CKR_GENERAL_ERROR),
		rv("function failed", pkcs11.CKR_FUNCTION_FAILED),
		rv("session lost", pkcs11.CKR_SESSION_HANDLE_INVALID),
		rv("operation active", pkcs11.CKR_OPERATION_ACTIVE),
		rv("buffer too small", pkcs11.CKR_BUFFER_TOO_SMALL),
		rv("device removed", pkcs11.CKR_DEVICE_REMOVED),
		rv("token not present", pkcs11.CKR_TOKEN_NOT_PRESENT),
		rv("not logged in", pkcs11.CKR_USER_NOT_LOGGED_IN),
		rv("host memory", pkcs11.CKR_HOST_MEMORY),
		rv("PIN incorrect", pkcs11.CKR_PIN_INCORRECT),
		rv("PIN locked", pkcs11.CKR_PIN_LOCKED),
		{"delay", faultDelay, 30},
		{"hang", faultHang, 1},
		{"crash", faultCrash, 0},
	}
}

// faultOp is an operation that uses a function, and how its result is judged.
type faultOp func(t *testing.T, h *hsm.HSM) error

// faultRow is a function of PKCS#11 as one role uses it.
type faultRow struct {
	function string
	fn       int
	role     hsm.Role
	opening  bool // used while the token is opened anew, not while serving
	op       func(keys []token.WrappedKey, items []token.Item) faultOp
}

func opens(keys []token.WrappedKey, items []token.Item) faultOp {
	return func(t *testing.T, h *hsm.HSM) error {
		for i := range items {
			items[i].Out = make([]byte, 0, len(items[i].In))
		}
		if err := h.Opener().Open(context.Background(), keys, items); err != nil {
			return err
		}
		for i, it := range items {
			if it.Err != nil || !bytes.Equal(it.Out, plaintext(i)) {
				t.Errorf("item %d: %v: a sound block was not opened, or wrongly", i, it.Err)
			}
		}
		return nil
	}
}

func seals(keys []token.WrappedKey, _ []token.Item) faultOp {
	return func(t *testing.T, h *hsm.HSM) error {
		items := make([]token.Item, 5)
		for i := range items {
			items[i] = token.Item{Key: i % len(keys), AAD: aad(i), In: plaintext(i), Out: make([]byte, 0, 200)}
		}
		err := h.Sealer().Seal(context.Background(), keys, items)
		for i := range items {
			if err == nil && (items[i].Err != nil || len(items[i].Out) != len(items[i].In)+16) {
				t.Errorf("item %d: %v: a sound block was not sealed", i, items[i].Err)
			}
		}
		return err
	}
}

func signs([]token.WrappedKey, []token.Item) faultOp {
	return func(t *testing.T, h *hsm.HSM) error {
		digest := sha256.Sum256([]byte("x"))
		_, err := h.TokenSigner().Signer().Sign(nil, digest[:], crypto.SHA256)
		return err
	}
}

func mints([]token.WrappedKey, []token.Item) faultOp {
	return func(t *testing.T, h *hsm.HSM) error {
		wrapped, err := h.Minter().Mint(context.Background(), 1, 3)
		if err == nil && (len(wrapped) != 3 || bytes.Equal(wrapped[0], wrapped[1])) {
			t.Errorf("minted %x", wrapped)
		}
		return err
	}
}

func rewraps(keys []token.WrappedKey, _ []token.Item) faultOp {
	return func(t *testing.T, h *hsm.HSM) error {
		got, err := h.Rotator().Rewrap(context.Background(), keys, 1)
		for i, g := range got {
			if g.Err != nil || !bytes.Equal(g.Wrapped, keys[i].Wrapped) { // the same KEK, the same bytes
				t.Errorf("key %d: %v: a sound key was not rewrapped, or wrongly", i, g.Err)
			}
		}
		return err
	}
}

func rewrapsTwo(keys []token.WrappedKey, _ []token.Item) faultOp { return rewraps(keys[:2], nil) }

func servingRows() []faultRow {
	return []faultRow{
		{"C_UnwrapKey", fnUnwrapKey, hsm.RoleOpen, false, opens},
		{"C_DecryptInit", fnDecryptInit, hsm.RoleOpen, false, opens},
		{"C_Decrypt", fnDecrypt, hsm.RoleOpen, false, opens},
		{"C_DestroyObject", fnDestroyObject, hsm.RoleOpen, false, opens},
		{"C_GenerateRandom", fnGenerateRandom, hsm.RoleSeal, false, seals},
		{"C_EncryptInit", fnEncryptInit, hsm.RoleSeal, false, seals},
		{"C_Encrypt", fnEncrypt, hsm.RoleSeal, false, seals},
		{"C_SignInit", fnSignInit, hsm.RoleSign, false, signs},
		{"C_Sign", fnSign, hsm.RoleSign, false, signs},
		{"C_GenerateKey", fnGenerateKey, hsm.RoleMint, false, mints},
		{"C_WrapKey", fnWrapKey, hsm.RoleMint, false, mints},
		// Each key is unwrapped twice: the middle is the first time of the second
		// of two keys, or the second time of the second of three.
		{"C_UnwrapKey to rewrap", fnUnwrapKey, hsm.RoleRotate, false, rewrapsTwo},
		{"C_UnwrapKey to prove it", fnUnwrapKey, hsm.RoleRotate, false, rewraps},
		{"C_WrapKey to rewrap", fnWrapKey, hsm.RoleRotate, false, rewraps},
		{"C_DestroyObject to rewrap", fnDestroyObject, hsm.RoleRotate, false, rewraps},
	}
}

func openingRows() []faultRow {
	return []faultRow{
		{"C_Initialize", fnInitialize, hsm.RoleOpen, true, opens},
		{"C_GetSlotList", fnGetSlotList, hsm.RoleOpen, true, opens},
		{"C_GetTokenInfo", fnGetTokenInfo, hsm.RoleOpen, true, opens},
		{"C_OpenSession", fnOpenSession, hsm.RoleOpen, true, opens},
		{"C_CloseSession", fnCloseSession, hsm.RoleOpen, true, opens},
		{"C_Login", fnLogin, hsm.RoleOpen, true, opens},
		{"C_FindObjectsInit", fnFindObjectsInit, hsm.RoleOpen, true, opens},
		{"C_FindObjects", fnFindObjects, hsm.RoleOpen, true, opens},
		{"C_FindObjectsFinal", fnFindObjectsFinal, hsm.RoleOpen, true, opens},
		{"C_GetAttributeValue", fnGetAttributeValue, hsm.RoleOpen, true, opens},
		{"C_SetAttributeValue", fnSetAttributeValue, hsm.RoleOpen, true, opens},
		{"C_CopyObject", fnCopyObject, hsm.RoleOpen, true, opens},
		{"C_UnwrapKey", fnUnwrapKey, hsm.RoleOpen, true, opens},
		{"C_GenerateKey", fnGenerateKey, hsm.RoleOpen, true, opens},
		{"C_WrapKey", fnWrapKey, hsm.RoleOpen, true, opens},
		{"C_CreateObject", fnCreateObject, hsm.RoleRotate, true, rewraps},
	}
}

// What becomes of a fault: the codes of the table.
const (
	served     = "ok" // nobody notices
	rechecked  = "C"
	newSession = "S"
	newConn    = "H"
	reopened   = "D"
	latched    = "L"
	abandoned  = "W"
	died       = "X"
	ended      = "R"
)

const legend = `| | the caller sees | what happens | and then |
|---|---|---|---|
| ok | the result | nothing | |
| C | the result | the token computes a known vector (canary); it comes out, so the failed part is done once more | |
| S | the result | the worker's session is replaced, after a canary where the code may mean a broken token, and the batch done once more | |
| H | the result | the token is opened anew at once (login, attacks on the KEK, canary); callers wait; the batch is done once more, unless only the destruction of keys after it failed | all data keys are unwrapped anew |
| D | UNAVAILABLE, another server is tried | the token is down: callers are turned away at once, health says NOT_SERVING | it is opened anew after 1 s, 2 s, 4 s ... 30 s, each spread by half; no restart |
| L | UNAVAILABLE, another server is tried | down, and not tried again: another login might lock the token | an operator mends the PIN and restarts the process |
| W | UNAVAILABLE after call_timeout, another server is tried | the worker is given up with its session (with the connection if it was the holder session's); another starts with a canary | at stuck_limit the process drains and ends with code 75; the supervisor starts another |
| R | UNAVAILABLE, another server is tried | every attempt to open a token waits behind this one and is given up after 20 s, until stuck_limit | the process drains and ends with code 75; the supervisor starts another |
| X | UNAVAILABLE (the connection breaks), another server is tried | the process is gone | the supervisor starts another; the token is unharmed |
`

type cell struct {
	row, column string
	opening     bool
}

// TestFaultTable injects each fault once into each function, in the middle of
// its use, looks at what becomes of it, and holds docs/HSM-FAULTS.md to it.
func TestFaultTable(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	got := map[cell]string{}
	note := func(r faultRow, c faultClass, code string) {
		mu.Lock()
		defer mu.Unlock()
		got[cell{r.function, c.name, r.opening}] = code
	}
	t.Run("cells", func(t *testing.T) {
		for _, r := range servingRows() {
			t.Run(r.function, func(t *testing.T) {
				t.Parallel()
				faultsOf(t, r, note)
			})
		}
		for _, r := range openingRows() {
			t.Run("opening "+r.function, func(t *testing.T) {
				t.Parallel()
				faultsOf(t, r, note)
			})
		}
		t.Run("crash", func(t *testing.T) {
			t.Parallel()
			crashes(t, note)
		})
	})
	if t.Failed() {
		return
	}
	doc := faultDocument(got)
	const path = "../../docs/HSM-FAULTS.md"
	if *update {
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != doc {
		t.Errorf("docs/HSM-FAULTS.md is not what was found (%v); if this is meant: go test ./internal/hsm -run TestFaultTable -update\n%s", err, doc)
	}
}

func faultDocument(got map[cell]string) string {
	var b strings.Builder
	b.WriteString(`# What becomes of a fault in the HSM

Made by ` + "`go test ./internal/hsm -run TestFaultTable -update`" + `, which puts each fault once into the middle of each function's use on
SoftHSM and looks at what happens; ` + "`make test`" + ` fails when this page is not what it finds. In no case is a plaintext or a
rewrapped key wrong, or sound data reported as damaged.

`)
	b.WriteString(legend)
	b.WriteString(`
Where a role has several tokens, another token of the same process is tried before another server is, in every row that says UNAVAILABLE but R
and X: the caller sees the result, and ` + "`kluis_hsm_failovers_total`" + ` counts it. While a token is opened anew (H) callers do not wait for it if another serves.

A fault that comes again at once, where it was survived the first time, is a D. Stored data that is damaged answers as a general error
does: C, and the item that fails once more is reported as damaged, the others are served, and ` + "`kluis_hsm_damaged_items_total`" + ` counts it.
A rewrapped key is unwrapped and wrapped back before it is given out; where other bytes come of that, the token is a D.

`)
	table := func(title string, rows []faultRow) {
		b.WriteString("## " + title + "\n| function |")
		for _, c := range faultClasses() {
			b.WriteString(" " + c.name + " |")
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(faultClasses())) + "\n")
		for _, r := range rows {
			b.WriteString("| `" + r.function + "` |")
			for _, c := range faultClasses() {
				b.WriteString(" " + got[cell{r.function, c.name, r.opening}] + " |")
			}
			b.WriteString("\n")
		}
	}
	table("While serving", servingRows())
	b.WriteString("\n")
	table("While a token that was down is opened anew", openingRows())
	b.WriteString(`
Here the caller has been turned away already (D); the code says what the fault adds. At the first start the process does not serve and
says why, instead.
`)
	return b.String()
}

// journal is what a token went through.
type journal struct {
	mu     sync.Mutex
	states []hsm.State
}

func (j *journal) note(s hsm.State) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.states); n == 0 || j.states[n-1] != s {
		j.states = append(j.states, s)
	}
}

func (j *journal) take() []hsm.State {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.states
	j.states = nil
	return s
}

// bench is an HSM of one role with faults, and work for it.
type bench struct {
	hsm     *hsm.HSM
	faulty  *faulty
	journal *journal
	op      faultOp
}

func newBench(t *testing.T, r faultRow, work func(h *hsm.HSM) ([]token.WrappedKey, []token.Item)) *bench {
	b := &bench{journal: &journal{}}
	b.hsm, b.faulty = openFaulty(t, func(c *hsm.Config) {
		c.CacheLifetime = time.Nanosecond // so that each batch unwraps and destroys
		c.CallTimeout, c.StuckLimit = patience, 1000
		*c = hsm.Tuned(*c, 6*time.Second, 30*time.Millisecond, 200*time.Millisecond, b.journal.note)
	}, r.role)
	keys, items := work(b.hsm)
	b.op = r.op(keys, items)
	return b
}

// faultsOf does one row of the table.
func faultsOf(t *testing.T, r faultRow, note func(faultRow, faultClass, string)) {
	work := tableWork(t)
	b := newBench(t, r, work)
	for _, c := range faultClasses() {
		if c.kind == faultCrash || c.kind == faultHang && r.fn == fnInitialize {
			continue // in a process of its own
		}
		if err := b.op(t, b.hsm); err != nil {
			t.Fatalf("before %s: %v", c.name, err)
		}
		b.journal.take()
		before := hsm.Counts(b.hsm, r.role)
		calls := b.faulty.calls(r.fn)
		if err := b.op(t, b.hsm); err != nil {
			t.Fatalf("before %s: %v", c.name, err)
		}
		calls = b.faulty.calls(r.fn) - calls
		start := time.Now()
		var err error
		if r.opening {
			b.faulty.inject(r.fn, c.kind, c.arg, calls, 1) // after those of the batch that finds the token gone
			gone := fnDecryptInit
			if r.role == hsm.RoleRotate {
				gone = fnUnwrapKey
			}
			b.faulty.fail(gone, pkcs11.CKR_DEVICE_REMOVED, 1)
			if err = b.op(t, b.hsm); !errors.Is(err, token.ErrUnavailable) {
				t.Fatalf("%s: a removed device is %v", c.name, err)
			}
		} else {
			b.faulty.inject(r.fn, c.kind, c.arg, calls/2, 1)
			err = b.op(t, b.hsm)
		}
		took := time.Since(start)
		if err != nil && !errors.Is(err, token.ErrUnavailable) {
			t.Errorf("%s: the caller sees %v", c.name, err)
		}
		if errors.Is(err, token.ErrUnavailable) && c.kind != faultHang && took > patience {
			t.Errorf("%s: it took %s to say so", c.name, took)
		}
		// Settle: it serves again, or never will.
		end := time.Now().Add(30 * time.Second)
		for !hsm.Latched(b.hsm, r.role) && b.op(t, b.hsm) != nil {
			if time.Now().After(end) {
				t.Fatalf("%s: does not come back", c.name)
			}
			time.Sleep(10 * time.Millisecond)
		}
		states, after := b.journal.take(), hsm.Counts(b.hsm, r.role)
		var code string
		switch {
		case hsm.Latched(b.hsm, r.role):
			code = latched
			logins := b.faulty.calls(fnLogin)
			time.Sleep(500 * time.Millisecond) // more than two pauses
			if n := b.faulty.calls(fnLogin); n != logins {
				t.Errorf("%s: %d more logins after the PIN was refused", c.name, n-logins)
			}
			b = newBench(t, r, work)
		case after.Stuck > before.Stuck:
			code = abandoned
			if took > 10*patience {
				t.Errorf("%s: the caller waited %s", c.name, took)
			}
			b.faulty.heal(r.fn)
			time.Sleep(50 * time.Millisecond) // the call comes back
			// C_Initialize and the like name no session.
			if n := b.faulty.touched(); n != 0 && !r.opening {
				t.Errorf("%s: a session that was given up was used %d times", c.name, n)
			}
		case r.opening && after.FailedOpenings > before.FailedOpenings:
			code = reopened
		case r.opening:
			code = served
		case err != nil:
			code = reopened
			if !slices.Contains(states, hsm.StateDown) || !slices.Contains(states, hsm.StateProbing) {
				t.Errorf("%s: unavailable, and went through %v", c.name, states)
			}
		case after.Openings > before.Openings:
			code = newConn
		case after.Sessions > before.Sessions:
			code = newSession
		case after.Canaries > before.Canaries:
			code = rechecked
		default:
			code = served
		}
		if err == nil && slices.Contains(states, hsm.StateDown) {
			t.Errorf("%s: served, and went through %v", c.name, states)
		}
		note(r, c, code)
		b.faulty.heal(r.fn)
	}
}

// tableWork mints and seals, by tokens without faults, what the rows work on.
func tableWork(t *testing.T) func(*hsm.HSM) ([]token.WrappedKey, []token.Item) {
	keys, items := soundWork(t)
	return func(*hsm.HSM) ([]token.WrappedKey, []token.Item) {
		own := slices.Clone(items)
		return keys, own
	}
}

var tableOnce struct {
	sync.Mutex
	keys  []token.WrappedKey
	items []token.Item
}

func soundWork(t *testing.T) ([]token.WrappedKey, []token.Item) {
	t.Helper()
	tableOnce.Lock()
	defer tableOnce.Unlock()
	if tableOnce.keys == nil {
		h := hsmtest.New(t).Servers[1].Open(t)
		tableOnce.keys = mintKeys(t, h, 3)
		tableOnce.items = sealItems(t, h, tableOnce.keys, 9)
	}
	return slices.Clone(tableOnce.keys), slices.Clone(tableOnce.items)
}
