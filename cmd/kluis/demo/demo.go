// Package demo runs all of Kluis on one machine: a private PostgreSQL, SoftHSM
// tokens, two cryptoservers, the key custodian, the issuer and the gateway, each
// its own process, with a small grid of metering points and a year of readings.
// Nothing in it is simulated but the homes.
//
// Everything lies in one state folder and is found again by the next run.
package demo

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "github.com/lib/pq" // the driver of the set-up connections

	"kluis/cmd/kluis/ceremony"
	"kluis/internal/config"
	"kluis/internal/devpg"
	"kluis/meter"
	"kluis/migrations"
)

// Options of a run.
type Options struct {
	State     string    // folder of everything; created when missing
	ReadyFile string    // where to write what serves where, as JSON; "" for none
	Once      bool      // make one supplier request, print the answer, stop
	BinDir    string    // folder of all programs, this one included
	Version   string    // of this program
	Module    string    // SoftHSM's PKCS#11 module; "" to look for it
	Stdout    io.Writer // the answer of Once, or what to try
	Stderr    io.Writer // progress
}

// Run sets up or resumes the demo and serves until ctx ends.
func Run(ctx context.Context, o Options) error {
	state, err := filepath.Abs(o.State)
	if err != nil {
		return err
	}
	if err := forgetDatabase(); err != nil {
		return err
	}
	d := &demo{Options: o, layout: layout{state}, began: time.Now()}
	defer d.stop()
	if err := d.up(ctx); err != nil {
		return err
	}
	if o.Once {
		return d.once(ctx)
	}
	d.greet()
	<-ctx.Done()
	d.say("stopping; run the same command to go on with the same data")
	return nil
}

// forgetDatabase takes the variables of another PostgreSQL (PGHOSTADDR,
// PGSERVICE) out of the environment of this process and its children, whose
// driver would follow them past what the URLs say.
func forgetDatabase() error {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}

type demo struct {
	Options
	layout
	began time.Time

	progress progress
	plan     *plan
	profile  *meter.Profile

	mu        sync.Mutex
	cluster   *devpg.Cluster
	processes []*process // in the order of their start
	closing   bool
	ready     readyFile
	told      bool // the ready file is written
}

// say shows one line of progress.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.Stderr, "  %5.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) up(ctx context.Context) error {
	module, err := findModule(d.Module)
	if err != nil {
		return err
	}
	for _, name := range []string{"gateway", "issuer", "cryptoserver", "kluis", "portal"} {
		if _, err := os.Stat(filepath.Join(d.BinDir, name)); err != nil {
			return fmt.Errorf("%s is not beside this program: build everything first with 'make build'", name)
		}
	}
	if d.progress, err = d.loadProgress(); err != nil {
		return err
	}
	dirs := []string{"pki", "keys", "logs", "profile", "custodian", checkpointsName}
	for i := range cryptoserverCount {
		dirs = append(dirs, cryptoserverName(i))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(d.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := d.keepOutOfGit(); err != nil {
		return err
	}
	if err := d.writeProfile(); err != nil {
		return err
	}
	yaml, err := os.ReadFile(d.profileFile())
	if err != nil {
		return err
	}
	if d.profile, err = meter.ParseProfile(yaml); err != nil {
		return fmt.Errorf("%s: %w", d.profileFile(), err)
	}
	today := meter.DayOf(time.Now(), d.profile.Location())
	setUp := today
	if d.progress.SetUp == "" {
		d.say("new demo in %s", d.dir)
		d.progress.SetUp, d.progress.Format = today.String(), stateFormat
	} else {
		d.say("resuming the demo of %s in %s", d.progress.SetUp, d.dir)
		if setUp, err = meter.ParseDay(d.progress.SetUp); err != nil {
			return fmt.Errorf("%s: %w", d.progressFile(), err)
		}
	}
	if d.plan, err = newPlan(setUp); err != nil {
		return err
	}
	if err := d.writePKI(d.plan); err != nil {
		return err
	}
	if err := d.writeCursorKey(); err != nil {
		return err
	}
	if err := d.writeSessionKey(); err != nil {
		return err
	}
	// The cluster's lock also keeps a second demo out of this folder, so
	// nothing that a running one uses is written before it is held.
	if err := d.startDatabase(ctx); err != nil {
		return err
	}
	if err := d.forgetReady(); err != nil {
		return err
	}
	if err := d.progress.addresses(); err != nil {
		return err
	}
	if err := d.writeIdentity(d.progress); err != nil {
		return err
	}
	if err := d.writeConfigs(d.progress, d.plan, module, func(role string) string { return d.cluster.URL(role, "kluis") }); err != nil {
		return err
	}
	if err := d.save(d.progress); err != nil {
		return err
	}
	if err := d.ceremony(ctx); err != nil {
		return err
	}
	for i := range cryptoserverCount {
		if err := d.startProcess(ctx, cryptoserverName(i), d.cryptoserverEnv(i), "cryptoserver", "serve", "--config", d.cryptoserverConfig(i)); err != nil {
			return err
		}
	}
	if err := d.startCustodian(ctx); err != nil {
		return err
	}
	operator, err := config.Load[config.Operator](d.operatorFile())
	if err != nil {
		return err
	}
	if err := d.activate(ctx, operator); err != nil {
		return err
	}
	if err := d.facts(ctx, operator); err != nil {
		return err
	}
	if err := d.seedPack(ctx, operator, today); err != nil {
		return err
	}
	if err := d.people(ctx, operator); err != nil {
		return err
	}
	if err := d.fill(ctx, operator, today); err != nil {
		return err
	}
	if err := d.startProcess(ctx, "issuer", nil, "issuer", "--config", d.issuerConfig()); err != nil {
		return err
	}
	if err := d.startProcess(ctx, "gateway", nil, "gateway", "--config", d.gatewayConfig()); err != nil {
		return err
	}
	if err := d.startProcess(ctx, auditorName, nil, "kluis", "audit", "run", "--config", d.operatorFile()); err != nil {
		return err
	}
	if err := d.startIdentity(ctx); err != nil {
		return err
	}
	if err := d.startProcess(ctx, portalName, nil, "portal", "--config", d.portalConfig()); err != nil {
		return err
	}
	if err := d.describePack(); err != nil {
		return err
	}
	if err := d.describe(ctx, operator, today); err != nil {
		return err
	}
	d.say("ready")
	return nil
}

// forgetReady removes the ready file of an earlier run: who waits for it must
// not find that run's addresses and process ids.
func (d *demo) forgetReady() error {
	if d.ReadyFile == "" {
		return nil
	}
	if err := os.Remove(d.ReadyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// startDatabase starts the private PostgreSQL, brings its schema up to date
// and keeps it running.
func (d *demo) startDatabase(ctx context.Context) error {
	cfg := devpg.Config{Dir: d.path("postgres"), Roles: migrations.Roles()}
	cluster, err := devpg.Start(ctx, cfg)
	if errors.Is(err, devpg.ErrInUse) {
		return fmt.Errorf("another demo runs in %s: stop it, or choose another folder with --state: %w", d.dir, err)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.cluster = cluster
	d.mu.Unlock()
	d.say("%s", cluster.Version())

	admin, err := sql.Open("postgres", cluster.URL(devpg.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := migrations.EnsureRoles(ctx, admin); err != nil {
		return err
	}
	if err := cluster.EnsureDatabase(ctx, "kluis", migrations.RoleOwner); err != nil {
		return err
	}
	owner, err := sql.Open("postgres", cluster.URL(migrations.RoleOwner, "kluis"))
	if err != nil {
		return err
	}
	defer owner.Close()
	n, err := migrations.Up(ctx, owner)
	if err != nil {
		return err
	}
	if n > 0 {
		d.say("database schema: %d migration(s) applied", n)
	}
	go d.keepDatabase(ctx, cfg, cluster)
	return nil
}

// keepDatabase starts PostgreSQL again when it ends by itself, on the same
// socket.
func (d *demo) keepDatabase(ctx context.Context, cfg devpg.Config, cluster *devpg.Cluster) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-cluster.Exited():
		}
		// It is gone, but its lock on the folder is ours until it is given back.
		if err := cluster.Stop(ctx); err != nil {
			d.say("PostgreSQL: %v", err)
		}
		cfg.Socket = filepath.Dir(cluster.Socket()) // where everybody looks for it
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(restartFirst):
			}
			next, err := devpg.Start(ctx, cfg)
			if err != nil {
				d.say("PostgreSQL: %v", err)
				continue
			}
			d.mu.Lock()
			if d.closing {
				d.mu.Unlock()
				_ = next.Stop(context.Background())
				return
			}
			d.cluster, cluster = next, next
			d.mu.Unlock()
			d.retell()
			break
		}
	}
}

// startProcess starts one of ours and keeps it running.
func (d *demo) startProcess(ctx context.Context, name string, env []string, args ...string) error {
	waiting, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return d.startWaiting(ctx, waiting, name, env, args...)
}

// startCustodian starts the key custodian. It is ready when a cryptoserver has
// its heartbeat, which may need somebody to do something first: the database
// was put back to an older state.
func (d *demo) startCustodian(ctx context.Context) error {
	hint := time.AfterFunc(custodianHint, func() {
		d.say("the key custodian is not ready yet; its log: %s", d.logFile(custodianName))
		d.say("if it says that the database is older than the control feed:  %s keys reapply --state %s", filepath.Join(d.BinDir, "kluis"), d.dir)
	})
	defer hint.Stop()
	return d.startWaiting(ctx, ctx, custodianName, nil, "kluis", "keys", "feed", "--config", d.operatorFile())
}

// custodianHint is after how long it is said why nothing happens.
const custodianHint = 4 * time.Second

func (d *demo) startWaiting(ctx, waiting context.Context, name string, env []string, args ...string) error {
	args[0] = filepath.Join(d.BinDir, args[0])
	p := &process{name: name, args: args, env: env, logFile: d.logFile(name)}
	d.mu.Lock()
	d.processes = append(d.processes, p)
	d.mu.Unlock()
	// Its own context: at the end the processes are stopped in order, the
	// gateway first, so that it can drain.
	if err := p.start(context.WithoutCancel(ctx), waiting, d.retell); err != nil {
		return err
	}
	d.say("%s (process %d)", name, p.PID())
	return ctx.Err()
}

// stop ends everything, in the opposite order of its start.
func (d *demo) stop() {
	d.mu.Lock()
	d.closing = true
	processes, cluster := d.processes, d.cluster
	d.mu.Unlock()
	for i := len(processes) - 1; i >= 0; i-- {
		processes[i].stop()
	}
	if cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		if err := cluster.Stop(ctx); err != nil {
			d.say("PostgreSQL: %v", err)
		}
	}
}

// ceremony makes the keys: on the first cryptoserver's tokens, then, wrapped
// to their transport keys, on those of the others. They are never in the clear
// outside a token.
func (d *demo) ceremony(ctx context.Context) (err error) {
	if d.progress.Keys {
		return nil
	}
	// Nothing is sealed yet, so an interrupted ceremony starts afresh.
	dir := CeremonyDir(d.dir)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i := range cryptoserverCount {
		if err := d.newTokenFolder(i); err != nil {
			return err
		}
	}
	c := ceremony.Ceremony{Program: filepath.Join(d.BinDir, "cryptoserver"), Version: d.Version, Epoch: firstEpoch, Dir: dir,
		Apart: true, Say: func(string, ...any) {}}
	if c.Servers, err = d.ceremonyServers(); err != nil {
		return err
	}
	if c.Log, err = ceremony.OpenTranscript(filepath.Join(dir, ceremony.TranscriptName)); err != nil {
		return err
	}
	if err := errors.Join(c.Run(ctx), c.Log.Close()); err != nil {
		return err
	}
	for to, from := range map[string]string{d.sealKeysFile(): c.SealKeysFile(), d.jwksFile(): c.JWKSFile()} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := writeFile(to, b, 0o644); err != nil {
			return err
		}
	}
	d.say("keys: made in one HSM, cloned to the tokens of %d cryptoservers", cryptoserverCount)
	d.progress.Keys = true
	return d.save(d.progress)
}

// newTokenFolder makes an empty SoftHSM with random PINs.
func (d *demo) newTokenFolder(i int) error {
	dir := d.path(cryptoserverName(i))
	for _, sub := range []string{"tokens", "pins"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", filepath.Join(dir, "tokens"))
	if err := writeFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600); err != nil {
		return err
	}
	for _, role := range []string{"so", "open", "seal", "mint", "rotate", "sign"} {
		pin := make([]byte, 12)
		if _, err := rand.Read(pin); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, "pins", role), []byte(hex.EncodeToString(pin)+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// greet says what to try.
func (d *demo) greet() {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.ready
	s, a, p := d.sample()
	fmt.Fprintf(d.Stdout, `
Kluis is ready.

  portal    %s        (customer service, in a browser)
            Sign in as %s. It is a development sign-in: it asks for no password.
            The browser warns of an unknown certificate, once for the portal and once for the sign-in: go on to 127.0.0.1,
            or have a browser profile of its own trust the authority in %s.
            A customer phones: who has looked at my meter? Stop it. Her metering point is %s,
            her address %s. A supplier waits for an answer at %s.

  API       %s        (mutual TLS and an access token)
  issuer    %s
  docs      %s        (the contract, to read in a browser; also at /docs of the API)
  metrics   %s
  database  %s
  logs      %s

Be the supplier %s: get a token, then the monthly register reads of one of its customers.

  TOKEN=$(curl -sS --cacert %s --cert %s --key %s \
    -d grant_type=client_credentials -d client_id=%s \
    %s/oauth2/token | sed 's/.*"access_token":"\([^"]*\)".*/\1/')

  curl -sS --cacert %s --cert %s --key %s \
    -H "Authorization: Bearer $TOKEN" \
    '%s'

  The same home's quarter-hours of one day, which need the customer's consent:

  curl -sS --cacert %s --cert %s --key %s \
    -H "Authorization: Bearer $TOKEN" \
    '%s'

Be an employee who serves its customer: a token for one errand, then the statement of who asked for what, to open in a browser.

  STAFF=$(%s staff token --state %s --ean %s --view --reason ticket-4711)

  curl -sS --cacert %s --cert %s --key %s \
    -H "Authorization: Bearer $STAFF" -H 'Accept: text/html' \
    '%s/v1/metering-points/%s/access-log?lang=en' > statement.html

The keys, who holds them, and what became of them:  %s keys status --state %s
Whether any record of an access was altered:        %s audit verify --state %s
Test metering points for every refusal and edge:    %s conformance list --state %s

Ctrl-C stops everything; the data stays in %s.
`,
		r.Portal.URL, employeesIn(r.Portal.Employees), r.CAFile,
		r.MeteringPoints[0].EAN, r.MeteringPoints[0].Address, r.MeteringPoints[unasked].EAN,
		r.GatewayURL, r.IssuerURL, strings.TrimSuffix(r.MetricsURL, "/metrics")+"/docs", r.MetricsURL, r.DatabaseURL, d.path("logs"),
		s.Name, r.CAFile, s.CertificateFile, s.KeyFile, s.ClientID, r.IssuerURL,
		r.CAFile, s.CertificateFile, s.KeyFile, readingsURL(r.GatewayURL, p.EAN, a.Purpose, a.From, a.To),
		r.CAFile, s.CertificateFile, s.KeyFile, d.oneDay(s, p),
		filepath.Join(d.BinDir, "kluis"), d.dir, p.EAN,
		r.CAFile, r.Portal.CertificateFile, r.Portal.KeyFile, r.GatewayURL, p.EAN,
		filepath.Join(d.BinDir, "kluis"), d.dir, filepath.Join(d.BinDir, "kluis"), d.dir, filepath.Join(d.BinDir, "kluis"), d.dir, d.dir)
}

// once makes the request that greet shows and prints the answer.
func (d *demo) once(ctx context.Context) error {
	s, a, p := d.sample()
	c, err := newAPIClient(&d.ready, s)
	if err != nil {
		return err
	}
	d.say("GET %s", readingsURL("", p.EAN, a.Purpose, a.From, a.To))
	answer, err := c.readings(ctx, p.EAN, a.Purpose, a.From, a.To)
	if err != nil {
		return err
	}
	_, err = d.Stdout.Write(answer)
	return err
}

// sample is the first supplier's monthly statement of its first customer, for
// the last two whole months.
func (d *demo) sample() (readySupplier, readyAccess, readyPoint) {
	s, p := d.ready.Suppliers[0], d.ready.MeteringPoints[0]
	for _, a := range p.Access {
		if a.Supplier != s.ID || a.Purpose != meter.Billing.String() {
			continue
		}
		to, err := meter.ParseDay(a.To)
		if err == nil {
			a.From = max(a.From, to.AddMonths(-2).String())
		}
		return s, a, p
	}
	return s, readyAccess{}, p
}

func (d *demo) oneDay(s readySupplier, p readyPoint) string {
	for _, a := range p.Access {
		if to, err := meter.ParseDay(a.To); err == nil && a.Supplier == s.ID && a.Basis == meter.Consent.String() {
			return readingsURL(d.ready.GatewayURL, p.EAN, a.Purpose, (to - 1).String(), a.To)
		}
	}
	return ""
}

// findModule looks for SoftHSM where Debian and its relatives put it.
func findModule(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	candidates := []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"}
	more, _ := filepath.Glob("/usr/lib/*/softhsm/libsofthsm2.so") // the pattern is valid
	for _, c := range append(candidates, more...) {
		if _, err := os.Stat(c); err == nil {
			return c, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", errors.New("SoftHSM is not installed: run  apt-get install -y --no-install-recommends softhsm2")
}
