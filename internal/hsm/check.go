package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// ErrCannotCheck: the check could not begin because of what was given to it.
var ErrCannotCheck = errors.New("the check cannot begin")

// CheckOptions says what Check looks at.
type CheckOptions struct {
	Module    string
	Token     Token                    // its label and PIN file
	SOPINFile string                   // of the security officer; "": what needs it is left out
	Quick     bool                     // leave out what takes long: limits and memory
	Progress  func(requirement string) // told of each requirement before it is tried; may be nil

	limits checkLimits // the defaults where zero; for tests
}

type checkLimits struct {
	call    time.Duration // one call into the module
	clear   time.Duration // one call of the clearing up after a check that was called off
	measure time.Duration // one figure of throughput
	bits    int           // modulus of transport keys
	rounds  int           // operations whose memory is counted

	weaken func([]*pkcs11.Attribute) []*pkcs11.Attribute // what a KEK is made with, to see a token fail
}

func (o *CheckOptions) setDefaults() {
	l := &o.limits
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&l.call, 30*time.Second)
	def(&l.clear, 10*time.Second)
	def(&l.measure, 500*time.Millisecond)
	if o.Quick {
		l.measure = min(l.measure, 100*time.Millisecond)
	}
	if l.bits == 0 {
		l.bits = 3072
	}
	if l.rounds == 0 {
		l.rounds = 10000
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// CheckResult is what became of one requirement.
type CheckResult string

// The results.
const (
	CheckPass     CheckResult = "PASS"
	CheckLimited  CheckResult = "LIMITED"   // Kluis works, with what it says
	CheckFail     CheckResult = "FAIL"      // the roles named cannot be served
	CheckNotTried CheckResult = "NOT TRIED" // for something before it failed
	CheckLeftOut  CheckResult = "LEFT OUT"  // not asked for
)

// CheckReport is what Check found. Its JSON is an interface to scripts.
type CheckReport struct {
	Format       string             `json:"format"`
	Quick        bool               `json:"quick"`
	Module       CheckedModule      `json:"module"`
	Token        CheckedToken       `json:"token"`
	Requirements []CheckRequirement `json:"requirements"`
	Quirks       []CheckQuirk       `json:"quirks"`
	Roles        []CheckedRole      `json:"roles"`
	Recommended  CheckRecommended   `json:"recommended"`
	// Fit: no role that was tried is unfit.
	Fit bool `json:"fit"`
}

// CheckFormat is the version of the report's JSON.
const CheckFormat = "kluis/hsm-check/1"

// CheckedModule is what C_GetInfo says.
type CheckedModule struct {
	Path         string `json:"path"`
	Manufacturer string `json:"manufacturer"`
	Description  string `json:"description"`
	Version      string `json:"version"`
	PKCS11       string `json:"pkcs11"`
}

// CheckedToken is what C_GetTokenInfo says.
type CheckedToken struct {
	Label        string `json:"label"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Serial       string `json:"serial"`
	Hardware     string `json:"hardware"`
	Firmware     string `json:"firmware"`
}

// CheckRequirement is one requirement and what became of it.
type CheckRequirement struct {
	ID      string             `json:"id"`
	Title   string             `json:"title"`
	Result  CheckResult        `json:"result"`
	Roles   []Role             `json:"roles"` // that need it, or, with FAIL, that fail for it
	Found   string             `json:"found"`
	Means   string             `json:"means"` // for Kluis
	Do      string             `json:"do"`    // "" when there is nothing to do
	Figures map[string]float64 `json:"figures,omitempty"`

	def *requirement
}

// CheckQuirk is a way of SoftHSM's that Kluis is made for, and whether this
// token has it: yes, no, or not tried.
type CheckQuirk struct {
	ID    string `json:"id"`
	What  string `json:"what"`
	Shows string `json:"shows"`
	Kluis string `json:"kluis"` // what it does about it
}

// CheckedRole says whether the token could serve a role.
type CheckedRole struct {
	Role    Role     `json:"role"`
	Verdict string   `json:"verdict"` // FIT, LIMITED, UNFIT or LEFT OUT
	Because []string `json:"because"` // the requirements that make it so
}

// CheckRecommended is for the configuration; zero where it was not measured.
type CheckRecommended struct {
	Workers      int `json:"workers"`
	KeyCacheSize int `json:"key_cache_size"`
	RenewAfter   int `json:"renew_after"` // 0: there is no need
}

// Check tries a token against everything Kluis asks of one. What counts is
// what the token does when asked, never what it says of itself.
//
// It works with session objects wherever a requirement is not about token
// objects. Those it makes are labelled kluis/check/..., and are destroyed at
// the end, also when the check fails, is interrupted or is called off; what a
// killed check left is destroyed by the next. So one check at a time may run
// on a token. It presents the user PIN, which is the right one, up to three
// times, and no other.
//
// A call into the module that does not return cannot be ended: the check is
// called off with the results so far, and the process should end.
//
// Errors are ErrCannotCheck, and that of ctx when the check was interrupted;
// then, too, nothing is left on the token unless the error says so.
func Check(ctx context.Context, o CheckOptions) (*CheckReport, error) {
	o.setDefaults()
	mod, err := checkable(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCannotCheck, err)
	}
	c := &checker{CheckOptions: o, ctx: ctx, mod: mod, raw: mod.raw, watch: newWatch()}
	c.shim = mod.shim.watched(c.watch.word)
	c.report = &CheckReport{Format: CheckFormat, Quick: o.Quick, Module: CheckedModule{Path: o.Module}, Token: CheckedToken{Label: o.Token.Label}}

	begin := make(chan error, 1)
	go func() { begin <- c.run() }()
	select {
	case err = <-begin:
	case <-c.watch.over:
		c.calledOff()
		if err = ctx.Err(); err != nil {
			err = fmt.Errorf("the check was interrupted while %s did not return; objects labelled %s may be left on the token, and the next check destroys them: %w", c.watch.call, checkPrefix, err)
		}
	}
	if err != nil {
		return nil, err
	}
	c.conclude()
	return c.report, nil
}

// checkable settles what can be settled without the token.
func checkable(o CheckOptions) (*module, error) {
	if o.Token.Label == "" || len(o.Token.Label) > 32 {
		return nil, fmt.Errorf("token label %q must have 1 to 32 characters", o.Token.Label)
	}
	if _, err := readPIN(o.Token.PINFile); err != nil {
		return nil, err
	}
	if o.SOPINFile != "" {
		if _, err := readPIN(o.SOPINFile); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(o.Module); err != nil {
		return nil, fmt.Errorf("PKCS#11 module: %w", err)
	}
	return loadModule(o.Module)
}

// watch calls the check off when a call into the module does not return.
type watch struct {
	over chan struct{} // closed when it is called off

	// word is negative once it is called off. The shim reads it, so it lies by
	// itself.
	word *int64

	mu    sync.Mutex
	call  string        // that does not return
	limit time.Duration // that it was given
}

func newWatch() *watch { return &watch{over: make(chan struct{}), word: new(int64)} }

func (w *watch) callOff(call string, limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.call == "" {
		w.call, w.limit = call, limit
		atomic.StoreInt64(w.word, stuck)
		close(w.over)
	}
}

// in runs one call into the module. After errAbandoned nothing of the check
// may be touched any more.
func (w *watch) in(call string, limit time.Duration, f func() error) error {
	if w.off() {
		return errAbandoned
	}
	timer := time.AfterFunc(limit, func() { w.callOff(call, limit) })
	err := f()
	timer.Stop()
	if w.off() {
		return errAbandoned
	}
	return err
}

func (w *watch) off() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.call != ""
}

// keep changes the report, unless the check was called off.
func (w *watch) keep(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.call == "" {
		change()
	}
}

// checker is a check under way. One goroutine has it, but for the report,
// which changes by watch.keep.
type checker struct {
	CheckOptions
	ctx    context.Context
	mod    *module
	raw    *pkcs11.Ctx
	shim   shim
	watch  *watch
	report *CheckReport
	at     *requirement    // of the report
	quirks map[string]bool // of the report

	*login
	flags   uint // of the token, before the PIN was presented
	s       pkcs11.SessionHandle
	info    pkcs11.Info
	host    *hostRSA
	pair    *transportPair
	known   *knownKey
	source  []byte // the KEK, wrapped to pair
	ownIV   bool   // the token makes IVs itself
	vector  bool   // the probe has one
	probe   probe
	keks    map[Role]pkcs11.ObjectHandle
	attacks map[string][]attackResult
	signing pkcs11.ObjectHandle

	sessions, workers, cache int // as measured; 0: not
	renewAfter               int // likewise; 0: no need
}

// finding is what trying a requirement came to.
type finding struct {
	result  CheckResult
	found   string
	means   string // beside why; for LIMITED instead of it
	do      string // instead of the requirement's own
	roles   []Role // that fail, when not all that need it
	figures map[string]float64
}

// notTried: something before it failed.
type notTried string

func (n notTried) Error() string { return string(n) }

// run opens the token, tries every requirement and clears up.
func (c *checker) run() (err error) {
	defer func() {
		if left := c.leave(); left != nil && err != nil {
			err = fmt.Errorf("%w; objects labelled %s may be left on the token, and the next check destroys them: %s", err, checkPrefix, ckr(left))
		}
	}()
	if err := c.open(); err != nil {
		return err
	}
	for i := range requirements {
		if c.login == nil {
			if i > 0 { // of the first, open said why
				c.note(&requirements[i], finding{result: CheckNotTried, found: "the token did not open"})
			}
			continue
		}
		if err := c.try(&requirements[i]); err != nil {
			return err
		}
	}
	return nil
}

// leave clears up and logs out, whatever became of the check.
func (c *checker) leave() error {
	if c.login == nil || c.watch.off() {
		return nil
	}
	c.ctx = context.WithoutCancel(c.ctx)
	err := c.in("C_DestroyObject", func() error { _, err := sweep(c.raw, c.session); return err })
	return firstError(err, c.in("C_CloseSession", func() error { c.login.close(); return nil }))
}

// calledOff finishes the report of a check whose call does not return, and
// tries to clear up on a session of its own: some modules still let it.
func (c *checker) calledOff() {
	r := c.report
	at := c.at
	for i := range requirements {
		if slices.ContainsFunc(r.Requirements, func(have CheckRequirement) bool { return have.ID == requirements[i].id }) {
			continue
		}
		f := finding{result: CheckNotTried, found: "the check was called off before"}
		if at == &requirements[i] {
			f = finding{result: CheckFail,
				found: fmt.Sprintf("%s did not return within %s, and nothing but the end of the process ends it", c.watch.call, c.watch.limit),
				means: "A call that does not return takes a worker with it, and after a few of them the process.",
				do:    "Find out why the HSM does not answer (network, firmware, another client), then check again."}
		}
		if requirements[i].id == "nothing-left" {
			f = c.clearAnew()
		}
		c.noteLocked(&requirements[i], f)
	}
}

// clearAnew clears up by a login of its own, under a watch of its own.
func (c *checker) clearAnew() finding {
	l := c.login
	if l == nil {
		return finding{result: CheckNotTried, found: "the token did not open, so nothing was made on it"}
	}
	w := newWatch()
	done := make(chan error, 1)
	go func() {
		done <- w.in("clearing up", c.limits.clear, func() error {
			s, err := l.open()
			if err != nil {
				return err
			}
			_, err = sweep(l.mod.raw, s)
			return firstError(err, l.mod.raw.CloseSession(s))
		})
	}()
	var err error
	select {
	case err = <-done:
	case <-w.over:
		err = errStuck
	}
	if err != nil {
		return finding{result: CheckFail, found: "objects labelled kluis/check/ may be left: " + ckr(err),
			do: "Run the check again when the HSM answers: it destroys them."}
	}
	return finding{result: CheckPass, found: "all that the check made is destroyed"}
}

func (c *checker) in(call string, f func() error) error {
	if err := c.ctx.Err(); err != nil {
		return fmt.Errorf("the check was interrupted: %w", err)
	}
	return c.watch.in(call, c.limits.call, f)
}

// inLong is in for a call that may take its time: an RSA key of 3072 bits
// takes some HSMs most of a minute.
func (c *checker) inLong(call string, f func() error) error {
	if err := c.in(call, func() error { return nil }); err != nil {
		return err
	}
	return c.watch.in(call, 4*c.limits.call, f)
}

// open finds the token and logs in.
func (c *checker) open() error {
	c.watch.keep(func() { c.at = &requirements[0] })
	var slots []uint
	var labels []string
	var info pkcs11.TokenInfo
	if err := c.in("C_Initialize, C_GetSlotList or C_GetTokenInfo", func() error {
		return c.mod.bare(func() (err error) {
			if slots, err = c.mod.findSlots(c.Token.Label); err != nil {
				return err
			}
			if len(slots) == 1 { // before the PIN: a login may clear what the flags tell
				info, err = c.raw.GetTokenInfo(slots[0])
				return err
			}
			labels, err = c.mod.labels()
			return err
		})
	}); err != nil {
		return c.cannotOpen(err)
	}
	switch {
	case len(slots) == 0:
		return fmt.Errorf("%w: the module shows no token labelled %s; it shows %s", ErrCannotCheck, c.Token.Label, listed(labels))
	case len(slots) > 1:
		return fmt.Errorf("%w: %d tokens are labelled %s; Kluis finds tokens by their labels, so these must be unique", ErrCannotCheck, len(slots), c.Token.Label)
	}
	var l *login
	err := c.in("opening the token (C_OpenSession, C_Login)", func() (err error) {
		l, err = dial(c.mod, c.Token)
		return err
	})
	switch {
	case errors.Is(err, errPIN):
		return fmt.Errorf("%w: the PIN of %s was presented once and not accepted, and is not tried again, for the token may count: %w", ErrCannotCheck, c.Token.PINFile, err)
	case err != nil:
		return c.cannotOpen(err)
	}
	if err := c.in("C_GetInfo", func() (err error) { c.info, err = c.raw.GetInfo(); return err }); err != nil {
		c.watch.keep(func() { c.login = l }) // to be closed
		return err
	}
	c.watch.keep(func() {
		c.login, c.flags = l, info.Flags
		c.keks, c.attacks, c.quirks = map[Role]pkcs11.ObjectHandle{}, nil, map[string]bool{}
		c.report.Module = CheckedModule{Path: c.Module, Manufacturer: c.info.ManufacturerID, Description: c.info.LibraryDescription,
			Version: version(c.info.LibraryVersion), PKCS11: version(c.info.CryptokiVersion)}
		c.report.Token = CheckedToken{Label: info.Label, Manufacturer: info.ManufacturerID, Model: info.Model, Serial: info.SerialNumber,
			Hardware: version(info.HardwareVersion), Firmware: version(info.FirmwareVersion)}
	})
	return nil
}

// cannotOpen reports a token that does not open; there is nothing else to say.
func (c *checker) cannotOpen(err error) error {
	if errors.Is(err, errAbandoned) || c.ctx.Err() != nil {
		return err
	}
	c.note(&requirements[0], finding{result: CheckFail, found: ckr(err)})
	return nil
}

// labels are those of the initialised tokens.
func (m *module) labels() ([]string, error) {
	slots, err := m.slots()
	if err != nil {
		return nil, err
	}
	var labels []string
	for _, s := range slots {
		if info, err := m.raw.GetTokenInfo(s); err == nil && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			labels = append(labels, info.Label)
		}
	}
	slices.Sort(labels)
	return labels, nil
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none that is initialised"
	}
	return strings.Join(names, ", ")
}

// try tries one requirement on a session of its own. Errors end the check.
func (c *checker) try(r *requirement) error {
	c.watch.keep(func() { c.at = r })
	c.Progress(r.title)
	if r.slow && c.Quick {
		c.note(r, finding{result: CheckLeftOut, found: "left out by --quick"})
		return nil
	}
	var f finding
	err := c.in("C_OpenSession", func() (err error) { c.s, err = c.login.open(); return err })
	if err == nil {
		f, err = r.try(c)
		s := c.s
		if closed := c.in("C_CloseSession", func() error { return c.raw.CloseSession(s) }); err == nil && errors.Is(closed, errAbandoned) {
			err = closed
		}
	}
	var n notTried
	switch {
	case errors.Is(err, errAbandoned), c.ctx.Err() != nil:
		return err
	case errors.As(err, &n):
		f = finding{result: CheckNotTried, found: string(n)}
	case err != nil:
		f = finding{result: CheckFail, found: ckr(err)}
	}
	c.note(r, f)
	return nil
}

func (c *checker) note(r *requirement, f finding) { c.watch.keep(func() { c.noteLocked(r, f) }) }

func (c *checker) noteLocked(r *requirement, f finding) {
	if f.result == "" {
		f.result = CheckPass
	}
	n := CheckRequirement{ID: r.id, Title: r.title, Result: f.result, Roles: r.roles, Found: f.found, Means: r.why, Figures: f.figures, def: r}
	if n.Roles == nil {
		n.Roles = []Role{}
	}
	if f.result == CheckFail && f.roles != nil {
		n.Roles = f.roles
	}
	switch {
	case f.result == CheckLimited && f.means != "":
		n.Means = f.means
	case f.means != "":
		n.Means = strings.TrimSpace(n.Means + " " + f.means)
	}
	if f.result == CheckFail || f.result == CheckLimited {
		if n.Do = f.do; n.Do == "" {
			n.Do = r.do
		}
	}
	c.report.Requirements = append(c.report.Requirements, n)
}

// quirk notes whether the token has one of the known quirks.
func (c *checker) quirk(id string, shows bool) {
	c.watch.keep(func() { c.quirks[id] = shows })
}

// conclude draws the verdicts.
func (c *checker) conclude() {
	r := c.report
	r.Recommended = CheckRecommended{Workers: c.workers, KeyCacheSize: c.cache, RenewAfter: c.renewAfter}
	for _, q := range quirks {
		q.Shows = "not tried"
		if shows, ok := c.quirks[q.ID]; ok {
			q.Shows = map[bool]string{true: "yes", false: "no"}[shows]
		}
		r.Quirks = append(r.Quirks, q)
	}
	r.Fit = true
	for _, role := range checkRoles {
		v := CheckedRole{Role: role, Verdict: "FIT", Because: []string{}}
		for _, kind := range []struct {
			verdict string
			of      func(CheckRequirement) bool
		}{
			{"UNFIT", func(q CheckRequirement) bool { return q.Result == CheckFail || q.Result == CheckNotTried }},
			{"LEFT OUT", func(q CheckRequirement) bool { return q.Result == CheckLeftOut && !q.def.slow }},
			{"LIMITED", func(q CheckRequirement) bool { return q.Result == CheckLimited }},
		} {
			for _, q := range r.Requirements {
				if kind.of(q) && slices.Contains(q.Roles, role) {
					v.Verdict = kind.verdict
					v.Because = append(v.Because, q.ID)
				}
			}
			if len(v.Because) > 0 {
				break
			}
		}
		r.Fit = r.Fit && v.Verdict != "UNFIT"
		r.Roles = append(r.Roles, v)
	}
}

// ckr puts an error of the module into words without its decoration.
func ckr(err error) string {
	var rv pkcs11.Error
	if !errors.As(err, &rv) {
		return err.Error()
	}
	return strings.ReplaceAll(err.Error(), rv.Error(), rvName(uint(rv)))
}

func rvName(rv uint) string {
	switch rv {
	case 0:
		return "CKR_OK"
	case notRun:
		return "nothing: the call was not made"
	case aeadDecryptFailed:
		return "CKR_AEAD_DECRYPT_FAILED"
	}
	if _, name, ok := strings.Cut(pkcs11.Error(rv).Error(), ": CKR_"); ok && name != "" {
		return "CKR_" + name
	}
	return fmt.Sprintf("code %#x", rv)
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
