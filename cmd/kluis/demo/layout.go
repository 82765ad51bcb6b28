package demo

import (
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"kluis/cmd/kluis/ceremony"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/meter"
)

// cryptoserverCount is the size of the demo's pool: one may die.
const cryptoserverCount = 2

// firstEpoch is that of the keys the demo begins with.
const firstEpoch = 1

// audience is the aud of access tokens: the gateway's API.
const audience = "urn:kluis:api"

// layout knows where everything of the demo lies in its state folder.
type layout struct{ dir string }

func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

func (l layout) operatorFile() string    { return l.path("kluis.yaml") }
func (l layout) profileFile() string     { return l.path("profile", "nl.yaml") }
func (l layout) sealKeysFile() string    { return l.path("keys", "seal-keys.pem") }
func (l layout) jwksFile() string        { return l.path("keys", "jwks.json") }
func (l layout) operatorCAFile() string  { return l.path("pki", "operator-ca.crt") }
func (l layout) supplierCAFile() string  { return l.path("pki", "supplier-ca.crt") }
func (l layout) cursorKeysFile() string  { return l.path("cursor-keys") }
func (l layout) gatewayConfig() string   { return l.path("gateway.yaml") }
func (l layout) issuerConfig() string    { return l.path("issuer.yaml") }
func (l layout) logFile(n string) string { return l.path("logs", n+".log") }

// custodianName is the key custodian's process.
const custodianName = "custodian"

// auditorName is the process that keeps the audit log, checkpointsName the folder
// of the checkpoints it exports.
const (
	auditorName     = "auditor"
	checkpointsName = "checkpoints"
	auditOrigin     = "kluis.demo/audit"
)

const cpusVariable = "GOMAXPROCS" // of the runtime of Go

func cryptoserverName(i int) string { return fmt.Sprintf("cryptoserver-%d", i+1) }

func (l layout) cryptoserverConfig(i int) string {
	return l.path(cryptoserverName(i), "cryptoserver.yaml")
}

// cryptoserverEnv points SoftHSM at the token folder of one cryptoserver, and
// divides the machine between the cryptoservers, which share it with all others.
func (l layout) cryptoserverEnv(i int) []string {
	env := []string{"SOFTHSM2_CONF=" + l.path(cryptoserverName(i), "softhsm2.conf")}
	if os.Getenv(cpusVariable) == "" {
		env = append(env, fmt.Sprintf("%s=%d", cpusVariable, max(1, runtime.NumCPU()/cryptoserverCount)))
	}
	return env
}

// ceremonyServers are the demo's servers as the key ceremony knows them.
func (l layout) ceremonyServers() ([]ceremony.Server, error) {
	servers := make([]ceremony.Server, cryptoserverCount)
	for i := range servers {
		var err error
		servers[i], err = ceremony.NewServer(l.cryptoserverConfig(i), l.path(cryptoserverName(i), "pins", "so"), l.cryptoserverEnv(i)...)
		if err != nil {
			return nil, err
		}
	}
	return servers, nil
}

// CeremonyServers are the servers of the demo in a state folder.
func CeremonyServers(state string) ([]ceremony.Server, error) { return layout{state}.ceremonyServers() }

// CeremonyDir is the folder of the key ceremonies of the demo in a state
// folder.
func CeremonyDir(state string) string { return layout{state}.path("ceremony") }

func (l layout) supplierPair(s supplier) (cert, key string) {
	return l.path("pki", s.file+".crt"), l.path("pki", s.file+".key")
}

// stateFormat changes when a state folder of before cannot be gone on with:
// its keys, which cannot be taken out, or what is sealed in it.
const stateFormat = 3

// progress is what the demo remembers of how far its set-up came; it is
// written after each part, so that an interrupted set-up goes on there.
type progress struct {
	// Format is of the state folder as a whole; 0 before there were formats.
	Format int `json:"format"`

	SetUp      string   `json:"set_up"` // the day of set-up, YYYY-MM-DD, local to the market
	Keys       bool     `json:"keys"`
	Facts      bool     `json:"facts"`
	People     bool     `json:"people"`
	Business   bool     `json:"business"`            // the suppliers have read and asked
	FilledTo   string   `json:"filled_to,omitempty"` // readings are stored for the days before this one
	Gateway    string   `json:"gateway"`             // listen addresses, kept from run to run
	Metrics    string   `json:"metrics"`
	Issuer     string   `json:"issuer"`
	Portal     string   `json:"portal"`
	Identity   string   `json:"identity"` // the development identity provider
	Cryptoserv []string `json:"cryptoservers"`

	Pack packProgress `json:"conformance,omitzero"`
}

func (l layout) progressFile() string { return l.path("demo.json") }

func (l layout) loadProgress() (progress, error) {
	var p progress
	st, err := os.Stat(l.progressFile())
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	// Before anything is touched: with half of its files another's, a demo
	// serves neither.
	if owner := st.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Getuid() {
		return p, fmt.Errorf("the demo in %s belongs to user id %d, and this is %d: run it as that user, or choose another folder with --state (make demo STATE=dir)",
			l.dir, owner, os.Getuid())
	}
	b, err := os.ReadFile(l.progressFile())
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("%s is damaged (%w); remove %s to start afresh", l.progressFile(), err, l.dir)
	}
	if p.Format != stateFormat {
		return p, fmt.Errorf("the demo in %s was made by another version of this program and cannot be gone on with: remove the folder to start afresh, or choose another with --state (make demo STATE=dir)", l.dir)
	}
	return p, nil
}

func (l layout) save(p progress) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(l.progressFile(), append(b, '\n'), 0o600)
}

// writeFile replaces a file in one step.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(b); err != nil {
		tmp.Close()
		return err
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// keepOutOfGit lets git ignore the folder, keys and PINs and all, where it lies
// in a checkout. A .gitignore that is there is somebody's own.
func (l layout) keepOutOfGit() error {
	f, err := os.OpenFile(l.path(".gitignore"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("*\n")
	return errors.Join(err, f.Close())
}

// addresses keeps each loopback address of the last run that is still free
// and picks new ones for the others.
func (p *progress) addresses() error {
	for len(p.Cryptoserv) < cryptoserverCount {
		p.Cryptoserv = append(p.Cryptoserv, "")
	}
	want := []*string{&p.Gateway, &p.Metrics, &p.Issuer, &p.Portal, &p.Identity}
	for i := range p.Cryptoserv {
		want = append(want, &p.Cryptoserv[i])
	}
	var held []net.Listener
	defer func() {
		for _, ln := range held {
			ln.Close()
		}
	}()
	for _, a := range want {
		ln, err := listenFree(*a)
		if err != nil {
			return err
		}
		held = append(held, ln)
		*a = ln.Addr().String()
	}
	return nil
}

// listenFree listens on the address, or else on another port. The process that
// gets the port listens seconds later: until then nobody gets it by asking for
// any free port, for those the system hands out begin above these.
func listenFree(addr string) (net.Listener, error) {
	if addr != "" {
		if ln, err := net.Listen("tcp", addr); err == nil {
			return ln, nil
		}
	}
	for range 100 {
		if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(17000))); err == nil {
			return ln, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// writePKI makes the operator's and the suppliers' authorities and every
// certificate. Neither authority's certificates are accepted in the other's
// place.
func (l layout) writePKI(pl *plan) error {
	dir := l.path("pki")
	operator, err := devpki.LoadOrCreateCA(dir, "operator-ca", "Kluis demo operator CA")
	if err != nil {
		return err
	}
	suppliers, err := devpki.LoadOrCreateCA(dir, "supplier-ca", "Kluis demo supplier CA")
	if err != nil {
		return err
	}
	loopback := []string{"127.0.0.1", "::1", "localhost"}
	servers := []string{"gateway", "issuer", portalServer, identityName}
	for i := range cryptoserverCount {
		servers = append(servers, cryptoserverName(i))
	}
	for _, name := range servers {
		if _, _, err := operator.IssueFiles(dir, name, devpki.Leaf{CommonName: name, Hosts: loopback}); err != nil {
			return err
		}
	}
	for _, name := range []string{"ingest", "registrar", "custodian", auditorName} {
		if _, _, err := operator.IssueFiles(dir, name, devpki.Leaf{CommonName: name}); err != nil {
			return err
		}
	}
	for _, s := range pl.suppliers {
		if _, _, err := suppliers.IssueFiles(dir, s.file, devpki.Leaf{CommonName: s.name}); err != nil {
			return err
		}
	}
	_, _, err = suppliers.IssueFiles(dir, portalName, devpki.Leaf{CommonName: portalName})
	return err
}

// writeProfile copies the Dutch profile once, with a retention that lets old
// readings be imported; the copy may be edited.
func (l layout) writeProfile() error {
	if _, err := os.Stat(l.profileFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	yaml, err := meter.WithRetention(meter.NL(), 60)
	if err != nil {
		return err
	}
	return writeFile(l.profileFile(), yaml, 0o644)
}

// writeCursorKey makes the key of the cursors once, like those of pki: not
// every start may end the cursors that clients have.
func (l layout) writeCursorKey() error {
	if _, err := os.Stat(l.cursorKeysFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var key [32]byte
	_, _ = crand.Read(key[:]) // never fails: see crypto/rand
	return writeFile(l.cursorKeysFile(), fmt.Appendf(nil, "%x\n", key), 0o600)
}

func (l layout) tls(name, ca string) config.TLS {
	return config.TLS{CertificateFile: l.path("pki", name+".crt"), KeyFile: l.path("pki", name+".key"), CAFile: ca}
}

// writeConfigs writes the configuration of every process. dbURL gives the
// database for a role.
func (l layout) writeConfigs(p progress, pl *plan, module string, dbURL func(role string) string) error {
	pool := func(identity string) config.Cryptoservers {
		return config.Cryptoservers{Addresses: p.Cryptoserv, TLS: l.tls(identity, l.operatorCAFile())}
	}
	issuerURL, gatewayURL := "https://"+p.Issuer, "https://"+p.Gateway
	issuers := []config.Issuer{{URL: issuerURL, Audience: audience, JWKSFile: l.jwksFile(), Staff: true}}
	for i := range cryptoserverCount {
		name := cryptoserverName(i)
		token := func(role string) config.Token {
			return config.Token{Label: fmt.Sprintf("kluis-%d-%s", i+1, role), PINFile: l.path(name, "pins", role)}
		}
		err := config.Write(l.cryptoserverConfig(i), config.Cryptoserver{
			ID: name, Listen: p.Cryptoserv[i], TLS: l.tls(name, l.operatorCAFile()),
			Allow: map[string][]string{
				"Open": {"gateway"}, "Mint": {"ingest", "custodian"}, "Seal": {"ingest"}, "SealIdentity": {"ingest"}, "OpenIdentity": {"gateway"}, "FindIndex": {"gateway"},
				"SealStep": {"registrar"}, "TakeStep": {"gateway"}, "SignManifest": {"gateway"}, "SealSupplier": {"registrar"}, "TakeSupplierStep": {"gateway"}, "SignToken": {"issuer"}, "SignStaffToken": {"issuer"},
				"SignControl": {"custodian"}, "PutControl": {"custodian"}, "Rewrap": {"custodian"}, "Reseal": {"custodian"},
				"ReadJournal": {"auditor"}, "SignCheckpoint": {"auditor"},
				"Status": {"gateway", "ingest", "registrar", "issuer", "custodian", "auditor"},
			},
			ProfileFile: l.profileFile(), SealKeysFile: l.sealKeysFile(), Issuers: issuers,
			Token:       config.TokenIssue{Issuer: issuerURL, Audience: audience},
			OperatorGLN: operatorGLN, IdentityProviders: l.identityProviders(p),
			Module: module,
			Tokens: config.Tokens{Open: []config.Token{token("open")}, Mint: []config.Token{token("mint")},
				Rotate: []config.Token{token("rotate")}, Seal: new(token("seal")), Sign: new(token("sign"))},
			ProbeKeyFile: l.path(name, "probe.key"),
			// SoftHSM has them in the memory of this process, some 10 kB each.
			KeyCache:   config.KeyCache{Size: 256, Lifetime: config.Duration(5 * time.Minute)},
			RenewAfter: 15_000, // and keeps some 250 bytes of each that it destroyed
			JournalDir: l.path(name, "journal"),
		})
		if err != nil {
			return err
		}
	}
	// The demo's own two may ask as much as the machine can; those of the test
	// metering points have the limits of any supplier.
	ample := map[string]config.Rate{}
	for _, s := range pl.suppliers {
		ample[s.gln.String()] = config.Rate{RequestsPerSecond: 5000, Burst: 10_000}
	}
	ample[operatorGLN] = config.Rate{RequestsPerSecond: 1000, Burst: 2000} // of which an employee has a share
	if err := config.Write(l.gatewayConfig(), config.Gateway{
		Listen: p.Gateway, MetricsListen: p.Metrics, PublicURL: gatewayURL, TLS: l.tls("gateway", l.supplierCAFile()),
		DatabaseURL: dbURL("kluis_gateway"), ProfileFile: l.profileFile(), SealKeysFile: l.sealKeysFile(), CursorKeysFile: l.cursorKeysFile(),
		Issuers: issuers, OperatorGLN: operatorGLN, Cryptoservers: pool("gateway"), RequestTimeout: config.Duration(10 * time.Second),
		Limits: config.Limits{Suppliers: ample},
	}); err != nil {
		return err
	}
	if err := config.Write(l.issuerConfig(), config.IssuerProcess{
		Listen: p.Issuer, URL: issuerURL, TLS: l.tls("issuer", l.supplierCAFile()), DatabaseURL: dbURL("kluis_issuer"),
		SealKeysFile: l.sealKeysFile(), JWKSFile: l.jwksFile(), OperatorGLN: operatorGLN, Cryptoservers: pool("issuer"),
	}); err != nil {
		return err
	}
	if err := l.writePortal(p, dbURL); err != nil {
		return err
	}
	return config.Write(l.operatorFile(), config.Operator{
		MigrateURL: dbURL("kluis_owner"), IngestURL: dbURL("kluis_ingest"), RegistrarURL: dbURL("kluis_registrar"),
		ProfileFile: l.profileFile(), SealKeysFile: l.sealKeysFile(), SuppliersCAFile: l.supplierCAFile(),
		Ingest: pool("ingest"), Registrar: pool("registrar"),
		CustodianURL: dbURL("kluis_custodian"), Custodian: pool("custodian"), FeedCopyFile: l.path("custodian", "feed"), CustodianMetricsListen: "127.0.0.1:0",
		AuditorURL: dbURL("kluis_auditor"), Auditor: pool(auditorName), AuditOrigin: auditOrigin, AuditExportDir: l.path(checkpointsName), AuditorMetricsListen: "127.0.0.1:0",
		// A demo is looked at whenever there is time for it.
		Oversight: config.Oversight{WorkingHours: config.WorkingHours{Days: []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}, From: "00:00", To: "24:00"}},
	})
}
