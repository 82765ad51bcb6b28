package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"kluis/internal/config"
	"kluis/migrations"
)

type migrateCmd struct {
	target
	RolesURL          string `help:"First create the database roles that are missing, over this connection, whose role may create roles." placeholder:"URL" name:"roles-url"`
	RolesPasswordFile string `help:"File with the password of --roles-url." type:"path" placeholder:"FILE" name:"roles-password-file"`
}

// Help says more than fits a line.
func (migrateCmd) Help() string {
	return "Logs in with migrate_url, whose role must own the database. Safe to repeat, and by several at once."
}

func (c *migrateCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if conf.MigrateURL == "" {
		return errors.New("the configuration has no migrate_url: add the connection of the role that owns the database")
	}
	if c.RolesURL != "" {
		err := withDatabase(c.RolesURL, c.RolesPasswordFile, func(db *sql.DB) error { return migrations.EnsureRoles(ctx, db) })
		if err != nil {
			return fmt.Errorf("creating roles: %w", err)
		}
	}
	applied := 0
	err = withDatabase(conf.MigrateURL, conf.PasswordFile, func(db *sql.DB) (err error) {
		applied, err = migrations.Up(ctx, db)
		return err
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, map[string]int{"applied": applied})
	}
	if applied == 0 {
		fmt.Fprintln(s.out, "The schema is up to date.")
	} else {
		fmt.Fprintf(s.out, "Applied %d migrations.\n", applied)
	}
	return nil
}

func withDatabase(url, passwordFile string, use func(*sql.DB) error) error {
	dsn, err := config.DSN(url, passwordFile)
	if err != nil {
		return err
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return errors.New("the database URL cannot be used")
	}
	return errors.Join(use(db), db.Close())
}
