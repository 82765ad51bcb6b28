package web

var logTexts = texts{}
