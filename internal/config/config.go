// Package config reads the one YAML file of each process, strictly: an
// unknown or repeated key or a wrong type is refused with line, column and
// excerpt, everything missing or out of range at once by its key.
// Secrets are never in the file: a key named *_file or *_dir holds a path, resolved
// relative to the configuration file's folder. Keys and PINs that anyone but
// their owner can read are refused.
package config

// TLS names the PEM files of one process's own identity and of the CA its
// peers must chain to.
type TLS struct {
	CertificateFile string `yaml:"certificate_file"`
	KeyFile         string `yaml:"key_file"`
	CAFile          string `yaml:"ca_file"` // peers' CA
}

// Cryptoservers is how a client reaches the pool.
type Cryptoservers struct {
	Addresses []string `yaml:"addresses"` // host:port, at least one
	TLS       TLS      `yaml:"tls"`       // the client's service certificate; operator CA
}

// Issuer is an accepted issuer of access tokens, with pinned or fetched keys.
type Issuer struct {
	URL      string `yaml:"url"`      // exact iss
	Audience string `yaml:"audience"` // exact aud
	JWKSFile string `yaml:"jwks_file,omitempty"`
	// JWKSURL is for the gateway only; cryptoservers pin keys in a file.
	JWKSURL string `yaml:"jwks_url,omitempty"`
	CAFile  string `yaml:"ca_file,omitempty"` // CA of JWKSURL
	// MaxLifetime bounds exp - iat of this issuer's tokens; default 300s, at
	// most 1h. Kluis' own issuer stays within the default.
	MaxLifetime Duration `yaml:"max_lifetime,omitempty"`
	// Staff says that this issuer's tokens may name employees of the grid
	// operator; needs operator_gln. For Kluis' own issuer, whose cryptoservers
	// sign such a token only against the employee's ID token: of one issuer at
	// most, whose keys are pinned with jwks_file.
	Staff bool `yaml:"staff,omitempty"`
}

// IdentityProvider is where the grid operator's employees sign in (OpenID
// Connect). Its keys are pinned; every key of the file must be one for signing.
type IdentityProvider struct {
	URL       string `yaml:"url"`      // exact iss
	Audience  string `yaml:"audience"` // exact aud: the portal's client id there
	JWKSFile  string `yaml:"jwks_file"`
	RoleClaim string `yaml:"role_claim"` // name of the claim of an ID token that holds a string or strings
	Roles     Roles  `yaml:"roles"`
	// MaxAge is how long an employee may work after having signed in; default
	// 12h, at most 24h.
	MaxAge Duration `yaml:"max_age,omitempty"`
}

// Roles says by which values of the role claim an employee has a role. A value
// stands for one role; who has several roles acts in the one that may do most.
type Roles struct {
	Agent      []string `yaml:"agent,omitempty"`
	Supervisor []string `yaml:"supervisor,omitempty"`
	Auditor    []string `yaml:"auditor,omitempty"`
}

// Traces names the OpenTelemetry collector that spans are sent to.
type Traces struct {
	Endpoint string `yaml:"endpoint"` // host:port, OTLP over gRPC; empty: no traces
	// TLS is how the collector is reached: the client's certificate, and the CA
	// of the collector's. May be left out for a collector on a loopback address.
	TLS *TLS `yaml:"tls,omitempty"`
	// Share of the requests that are traced, from 0 to 1. The gateway's alone: a
	// cryptoserver traces what belongs to a traced request.
	Share float64 `yaml:"share,omitempty"`
}

// Limits bound what callers can make the gateway do; docs/decisions/0037 has the
// reasons. What is left out has its default.
type Limits struct {
	Rate      `yaml:",inline"`
	Suppliers map[string]Rate `yaml:"suppliers,omitempty"` // by GLN: other rates for some
	Streams   int             `yaml:"streams,omitempty"`   // under way of one supplier; default 4
	// UnrelatedPerSecond and UnrelatedBurst bound the metering points that a
	// supplier lists in queries and has nothing to do with; default 100 and 1000.
	UnrelatedPerSecond float64 `yaml:"unrelated_per_second,omitempty"`
	UnrelatedBurst     int     `yaml:"unrelated_burst,omitempty"`
	// Turns is how many requests and batches of streams may be at the back ends
	// at once, by default two for each CPU; TurnsEach how many of them one
	// supplier may have while others are about, by default a quarter.
	Turns     int `yaml:"turns,omitempty"`
	TurnsEach int `yaml:"turns_each,omitempty"`
	// Queue is how many requests of a supplier may wait for a turn, QueueAll how
	// many of all suppliers, of each of which one always may; default 64 and 512.
	Queue    int `yaml:"queue,omitempty"`
	QueueAll int `yaml:"queue_all,omitempty"`
	// Connections is how many there may be at once, ConnectionsEach how many of
	// them with one client certificate, Handshakes how many may be on their way
	// besides; default 2000, 200 and 256.
	Connections     int `yaml:"connections,omitempty"`
	ConnectionsEach int `yaml:"connections_each,omitempty"`
	Handshakes      int `yaml:"handshakes,omitempty"`
}

// Rate is a bucket of requests.
type Rate struct {
	RequestsPerSecond float64 `yaml:"requests_per_second,omitempty"` // default 100
	Burst             int     `yaml:"burst,omitempty"`               // default 200
}

// Gateway configures cmd/gateway.
type Gateway struct {
	Listen               string `yaml:"listen"`         // host:port of the API, mTLS
	MetricsListen        string `yaml:"metrics_listen"` // host:port of Prometheus metrics, plain HTTP, private network
	PublicURL            string `yaml:"public_url"`     // https://host:port, for links
	TLS                  TLS    `yaml:"tls"`            // server certificate; CA of the suppliers
	DatabaseURL          string `yaml:"database_url"`   // role kluis_gateway; without a password
	DatabasePasswordFile string `yaml:"database_password_file,omitempty"`
	ProfileFile          string `yaml:"profile_file"`
	SealKeysFile         string `yaml:"seal_keys_file"` // PEM, the pinned public seal keys
	// CursorKeysFile holds the keys that cursors are sealed with: 64 hexadecimal
	// digits a line, the same at all gateways. The first one seals, all open.
	CursorKeysFile string   `yaml:"cursor_keys_file"`
	Issuers        []Issuer `yaml:"issuers"`
	// OperatorGLN is the grid operator's own GLN: the client_id of its
	// employees' tokens. Without it there are no employees.
	OperatorGLN    string        `yaml:"operator_gln,omitempty"`
	Cryptoservers  Cryptoservers `yaml:"cryptoservers"`
	RequestTimeout Duration      `yaml:"request_timeout,omitempty"` // whole request; default 10s
	Limits         Limits        `yaml:"limits,omitempty"`
	Traces         Traces        `yaml:"traces,omitempty"`
}

// IssuerProcess configures cmd/issuer.
type IssuerProcess struct {
	Listen               string `yaml:"listen"`       // mTLS optional: JWKS and metadata need no certificate
	URL                  string `yaml:"url"`          // iss, https://host:port
	TLS                  TLS    `yaml:"tls"`          // server certificate; CA of the suppliers
	DatabaseURL          string `yaml:"database_url"` // role kluis_issuer
	DatabasePasswordFile string `yaml:"database_password_file,omitempty"`
	SealKeysFile         string `yaml:"seal_keys_file"`
	JWKSFile             string `yaml:"jwks_file"` // public keys of the sign role, served at /oauth2/jwks
	// OperatorGLN is the client that may exchange its employees' ID tokens for
	// access tokens; without it nobody may.
	OperatorGLN   string        `yaml:"operator_gln,omitempty"`
	Cryptoservers Cryptoservers `yaml:"cryptoservers"`
}

// Cryptoserver configures cmd/cryptoserver.
type Cryptoserver struct {
	ID     string `yaml:"id"`     // server id in receipts
	Listen string `yaml:"listen"` // host:port, gRPC over mTLS
	TLS    TLS    `yaml:"tls"`    // service certificate; operator CA
	// MetricsListen is the host:port of Prometheus metrics, plain HTTP on a
	// private network; without it there are none.
	MetricsListen string `yaml:"metrics_listen,omitempty"`
	// Allow lists, per gRPC method name, the client identities (certificate
	// subject common name) that may call it. An empty or missing list denies.
	// The health service is open to every identity on any list.
	Allow        map[string][]string `yaml:"allow"`
	ProfileFile  string              `yaml:"profile_file"`
	SealKeysFile string              `yaml:"seal_keys_file"`
	Issuers      []Issuer            `yaml:"issuers,omitempty"` // accepted on Open and whatever else takes an access token; JWKSFile only
	Token        TokenIssue          `yaml:"token,omitempty"`   // what SignToken sets
	// OperatorGLN as in Gateway; for Open, and for signing employees' tokens.
	OperatorGLN string `yaml:"operator_gln,omitempty"`
	// IdentityProviders vouch for employees: SignStaffToken verifies their ID
	// tokens. Without one, no employee's token is signed.
	IdentityProviders []IdentityProvider `yaml:"identity_providers,omitempty"`
	Module            string             `yaml:"module"` // path of the PKCS#11 module
	Tokens            Tokens             `yaml:"tokens"`
	ProbeKeyFile      string             `yaml:"probe_key_file,omitempty"` // wrapped probe key for the start-up attacks
	KeyCache          KeyCache           `yaml:"key_cache,omitempty"`
	// JournalDir is where the server keeps what it opened and sealed, for the
	// auditor; needed for the roles open and seal. A folder of its own, readable
	// by nobody else, made when missing; relative to the configuration file.
	JournalDir string `yaml:"journal_dir,omitempty"`
	// JournalDays is how many days a part of the journal is kept at least after
	// its last entry; default 30, at most 3650. What the auditor does not have yet
	// is kept for ever.
	JournalDays int `yaml:"journal_days,omitempty"`
	// CallTimeout is how long one call into the PKCS#11 module (at most 64
	// operations) may take before it counts as stuck; default 2s, at most 1m.
	// Keep it well under the gateway's request_timeout, so that a request can
	// still go to another cryptoserver.
	CallTimeout Duration `yaml:"call_timeout,omitempty"`
	// StuckLimit is after how many stuck calls the process stops serving,
	// drains and exits with code 75 for its supervisor to start another;
	// default 3, at most 100.
	StuckLimit int `yaml:"stuck_limit,omitempty"`
	// RenewAfter is after how many session objects (data keys unwrapped, minted
	// or rewrapped; each server draws a tenth more or less) the PKCS#11 module is
	// ended and initialised anew, at most 1000000000: for a module that keeps
	// memory of keys it destroyed, as SoftHSM does. Callers wait for it, some 100 ms
	// with SoftHSM. 0, the default: never.
	RenewAfter int `yaml:"renew_after,omitempty"`
	// SealRate is how many blocks a second each client may have sealed by this
	// server, resealed ones included; default 20000, at most 1000000. A client
	// that is faster is told to wait.
	SealRate int `yaml:"seal_rate,omitempty"`
	// PointsPerToken is how many different metering points this server opens on one
	// access token at most; default 100000, at most 1000000. Who needs more gets
	// another token in between.
	PointsPerToken int    `yaml:"points_per_token,omitempty"`
	Traces         Traces `yaml:"traces,omitempty"`
}

// TokenIssue is what the sign role puts into access tokens.
type TokenIssue struct {
	Issuer   string `yaml:"issuer"`
	Audience string `yaml:"audience"`
	KeyID    string `yaml:"key_id,omitempty"` // kid; default: thumbprint (RFC 7638)
}

// Tokens names the HSM tokens of each role; a role not named is not served.
// The tokens of one role must hold the same KEKs and share its work. The roles
// seal and sign have one each: their signing key is the server's own.
type Tokens struct {
	Open   []Token `yaml:"open,omitempty"`
	Mint   []Token `yaml:"mint,omitempty"`
	Rotate []Token `yaml:"rotate,omitempty"`
	Seal   *Token  `yaml:"seal,omitempty"`
	Sign   *Token  `yaml:"sign,omitempty"`
}

// Token is one PKCS#11 token.
type Token struct {
	Label   string `yaml:"label"`
	PINFile string `yaml:"pin_file"`
	// Workers is how many sessions work side by side: 1 (the default) for
	// SoftHSM, as many as it has engines for a real HSM, at most 64.
	Workers int `yaml:"workers,omitempty"`
}

// KeyCache bounds the unwrapped data keys a token holds.
type KeyCache struct {
	Size     int      `yaml:"size,omitempty"`     // handles; default 4096
	Lifetime Duration `yaml:"lifetime,omitempty"` // default 300s, at most 1h
}

// Operator configures the kluis command against an installation. Each part
// may be left out; the commands that need it then say so.
type Operator struct {
	MigrateURL      string        `yaml:"migrate_url,omitempty"`   // role that owns the tables
	IngestURL       string        `yaml:"ingest_url,omitempty"`    // role kluis_ingest
	RegistrarURL    string        `yaml:"registrar_url,omitempty"` // role kluis_registrar
	CustodianURL    string        `yaml:"custodian_url,omitempty"` // role kluis_custodian
	PasswordFile    string        `yaml:"password_file,omitempty"`
	ProfileFile     string        `yaml:"profile_file"`
	SealKeysFile    string        `yaml:"seal_keys_file"`
	SuppliersCAFile string        `yaml:"suppliers_ca_file,omitempty"`
	Ingest          Cryptoservers `yaml:"ingest,omitempty"`    // client identity "ingest": Mint, Seal
	Registrar       Cryptoservers `yaml:"registrar,omitempty"` // client identity "registrar": SealStep, SealSupplier
	// Custodian is how the key custodian reaches every cryptoserver there is;
	// client identity "custodian".
	Custodian Cryptoservers `yaml:"custodian,omitempty"`
	// FeedCopyFile is the custodian's own copy of the control feed; made when
	// missing. It must lie outside of the database and of its backups: by it a
	// database that was put back to an older state is told from a new one.
	FeedCopyFile string `yaml:"feed_copy_file,omitempty"`
	// CustodianMetricsListen is the host:port of the Prometheus metrics of the
	// custodian's daemon, plain HTTP on a private network; without it there are none.
	CustodianMetricsListen string `yaml:"custodian_metrics_listen,omitempty"`

	AuditorURL string `yaml:"auditor_url,omitempty"` // role kluis_auditor
	// Auditor is how the auditor reaches every cryptoserver there is; client
	// identity "auditor".
	Auditor Cryptoservers `yaml:"auditor,omitempty"`
	// AuditOrigin is the name of the audit log, part of every checkpoint: 1 to 64
	// printable ASCII characters without space and plus. It never changes.
	AuditOrigin string `yaml:"audit_origin,omitempty"`
	// AuditExportDir is where signed checkpoints are exported to, a folder that
	// is there. Copies of it must lie where nobody who can write to the database
	// can write: with them a rewritten log is told from the true one.
	AuditExportDir string `yaml:"audit_export_dir,omitempty"`
	// AuditorMetricsListen is the host:port of the Prometheus metrics of the
	// auditor's daemon, as CustodianMetricsListen.
	AuditorMetricsListen string `yaml:"auditor_metrics_listen,omitempty"`
	// Oversight is what the auditor's daemon counts by.
	Oversight Oversight `yaml:"oversight,omitempty"`
}
