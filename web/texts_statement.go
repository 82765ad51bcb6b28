package web

var statementTexts = texts{}
